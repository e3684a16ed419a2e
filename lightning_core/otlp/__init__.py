"""OTLP: the spans that we write, and spans of any make that we read.

Written, with the standard library alone, so that agents can import it:
    spans.py  a span, and its bytes      proof.py  that spans are an attempt's

Received:
    receive.py      bodies to protobuf              from_json.py  OTLP/JSON to protobuf
    json_values.py  how much there is in JSON

Decoded later, off the request path:
    messages.py  OTLP's messages as protobuf's classes   wire.py    fields of a broken message
    locate.py    a request → its spans                   scopes.py  resources and scopes
    columns.py   spans → columns                         values.py  attributes' values
    senders.py   whose spans, and who sent them
"""
