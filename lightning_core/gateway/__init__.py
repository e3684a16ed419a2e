"""The one gateway of a run: OpenAI API in front of vLLM, OTLP receiver, spool; one process, one port.

    python -m lightning_core.gateway --home var --port 8080

The process:
    main.py     starts it                     app.py             puts the parts together
    handle.py   the gateway as flows see it   router.py          which endpoint a path means
    http.py     bodies, answers, errors       protocol.py        bounds of a request's head
    access.py   who may do what               attempt_tokens.py  what opens one attempt's scope
    admin.py    what flows and operators ask  json_body.py       the JSON of a request
    stats.py    counters                      service_files.py   its small files
    revoked.py  tokens that were taken back   room.py            memory for what is sent
    opened.py   rollouts of agents elsewhere

A call through the gateway:
    gateway.py      the endpoints                       call.py         from request to durable span
    admission.py    which calls may begin now           media.py        files that a message names
    routes.py       which policy a model name means     targets.py      what else it may mean
    sampling.py     what of a request goes to vLLM      prompts.py      the prompts that it is served
    upstream.py     which replica, and retries          http_client.py  HTTP to model servers
    reply.py        ids, logprobs and text of a reply   sse.py          server-sent events
    call_span.py    a call as a span                    call_log.py     a call as a line of the log

Other APIs:
    api_format.py         how a reply looks to a client   responses_request.py  Responses API → chat
    responses_reply.py    chat → Responses API            responses_store.py    responses that are kept

OTLP:
    intake.py     what both receivers do   otlp_http.py  OTLP/HTTP
    otlp_grpc.py  OTLP/gRPC
"""
