"""OpenAI's client alone, with OpenTelemetry's GenAI instrumentation: nobody names an agent."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

from common import QUESTION, tracing
from openai import OpenAI
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

provider = tracing()
OpenAIInstrumentor().instrument(tracer_provider=provider)
client = OpenAI()


def ask(question: str) -> str:
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model="policy", messages=messages).choices[0].message.content


if json.load(sys.stdin)["variant"] == "parallel":
    with ThreadPoolExecutor() as threads:
        list(threads.map(ask, [QUESTION, "And of pears?"]))
else:
    ask(ask(QUESTION))
provider.shutdown()
