"""What comes in over OTLP → protobuf bytes whose envelope is sound.

A protobuf request passes through unchanged; OTLP/JSON is converted, so that what lies behind knows one encoding. What
is in the spans is nobody's business here: decoding them happens later, off the request path.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from lightning_core.otlp.from_json import read_json, trace_envelope
from lightning_core.otlp.messages import MOST_PARTS, OtlpError, count_spans, parse_envelope, require_few_parts
from lightning_core.otlp.spans import PROTOBUF

JSON = "application/json"

_MOST_MEMBERS = 1024  # of a gzip body; a body of nothing but empty ones would take minutes
_INFLATED_AT_ONCE = 256 * 1024  # bytes; what follows a member is copied, so that this bounds the copies


def media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """A request as it goes to the spool."""

    body: bytes  # protobuf encoding of an `ExportTraceServiceRequest`; empty where it holds no span
    spans: int
    rejected: int = 0  # of them spans of OTLP/JSON without a protobuf form: in `body` for the decoder to set aside
    reason: str = ""  # of the first of those


def parse_request(body: bytes, content_type: str, content_encoding: str | None, max_bytes: int) -> TraceRequest:
    """Return what a trace request holds; `max_bytes` bounds the uncompressed body.

    Only the envelope is checked: a span that cannot be decoded does not lose the others, it is found later. Raises
    OtlpError: 400 for what is no OTLP trace request, 413 for too large a body, 415 for another content type or
    encoding.
    """
    remedy = "send smaller batches or raise gateway.max_body_mb"
    media, plain = plain_body(body, content_type, content_encoding, max_bytes, remedy)
    if media == PROTOBUF:
        if len(plain) > 2 * MOST_PARTS:
            require_few_parts(plain)
        spans = count_spans(parse_envelope(plain), len(plain))
        return TraceRequest(plain if spans else b"", spans)
    envelope, reasons = trace_envelope(read_json(plain))
    spans = count_spans(envelope)
    return TraceRequest(
        envelope.SerializeToString() if spans else b"", spans, len(reasons), reasons[0] if reasons else ""
    )


def plain_body(
    body: bytes, content_type: str, content_encoding: str | None, max_bytes: int, remedy: str
) -> tuple[str, bytes]:
    """Return (PROTOBUF or JSON, the uncompressed body).

    Raises OtlpError: 413 with the remedy past `max_bytes`, 415, or 400 for a damaged compression.
    """
    media = media_type(content_type)
    if media not in (PROTOBUF, JSON):
        raise OtlpError(415, f"content type {content_type!r:.80} is not supported; send {PROTOBUF} or {JSON}")
    return media, uncompress(body, content_encoding, max_bytes, remedy)


def uncompress(body: bytes, content_encoding: str | None, max_bytes: int, remedy: str) -> bytes:
    """Undo gzip or deflate without ever holding more than `max_bytes`; raises OtlpError."""
    encoding = (content_encoding or "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "deflate"):
        raise OtlpError(415, f"content encoding {encoding!r:.40} is not supported; send gzip, deflate or none")
    too_large = OtlpError(413, f"the body exceeds {max_bytes} bytes; {remedy}")
    if len(body) > max_bytes:
        raise too_large
    if encoding in ("identity", ""):
        return body
    view, at = memoryview(body), 0
    parts: list[bytes] = []
    room, members = max_bytes, 0
    inflate = None
    while at < len(view):
        if inflate is None:
            members += 1
            if members > _MOST_MEMBERS:
                raise OtlpError(400, f"the {encoding} body has more than {_MOST_MEMBERS} members")
            inflate = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
        piece = view[at : at + _INFLATED_AT_ONCE]
        try:
            part = inflate.decompress(piece, room + 1)
        except zlib.error as error:
            raise OtlpError(400, f"the body is not {encoding}: {error}") from None
        room -= len(part)
        if room < 0:
            raise too_large
        parts.append(part)
        at += len(piece)
        if inflate.eof:  # gzip allows several members one after another
            at -= len(inflate.unused_data)
            inflate = None
    if inflate is not None:
        raise OtlpError(400, f"the {encoding} body ends too early")
    return b"".join(parts)


def sniff_encoding(body: bytes) -> str | None:
    """Return `gzip` or `deflate` by the first two bytes, else None.

    No trace request begins like either (its first byte is 0x0a).
    """
    if body[:2] == b"\x1f\x8b":
        return "gzip"
    zlib_header = len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return "deflate" if zlib_header else None
