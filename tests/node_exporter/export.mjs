// Emits the spans of a file through OpenTelemetry's Node SDK as it is. Where they go, and how, is said by the
// standard OTEL_* variables alone.
//
//   node export.mjs spans.json    prints {"<key>": {"trace_id": …, "span_id": …}} after everything was flushed
import { readFileSync } from "node:fs";
import { ROOT_CONTEXT, SpanKind, SpanStatusCode, trace } from "@opentelemetry/api";
import { NodeSDK } from "@opentelemetry/sdk-node";

const time = (ns) => [Number(BigInt(ns) / 1_000_000_000n), Number(BigInt(ns) % 1_000_000_000n)];
const spans = JSON.parse(readFileSync(process.argv[2], "utf8"));
const sdk = new NodeSDK();
sdk.start();

const tracer = trace.getTracer("node-agent", "1.2.3");
const open = new Map();
for (const given of spans) {
  const parent = given.parent && trace.setSpan(ROOT_CONTEXT, open.get(given.parent));
  const links = given.links.map((link) => ({
    context: { traceId: link.trace_id, spanId: link.span_id, traceFlags: 1 },
    attributes: link.attributes,
  }));
  const options = { kind: SpanKind[given.kind.toUpperCase()], startTime: time(given.start_ns), links };
  const span = tracer.startSpan(given.name, { ...options, attributes: given.attributes }, parent || ROOT_CONTEXT);
  for (const event of given.events) span.addEvent(event.name, event.attributes, time(event.time_ns));
  if (given.status !== "unset") {
    span.setStatus({ code: SpanStatusCode[given.status.toUpperCase()], message: given.status_message ?? undefined });
  }
  open.set(given.key, span);
}
for (const given of [...spans].reverse()) open.get(given.key).end(time(given.end_ns));
await sdk.shutdown();

const ids = [...open].map(([key, span]) => {
  const { traceId, spanId } = span.spanContext();
  return [key, { trace_id: traceId, span_id: spanId }];
});
console.log(JSON.stringify(Object.fromEntries(ids)));
