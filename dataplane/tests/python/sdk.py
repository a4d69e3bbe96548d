"""The OpenAI and Anthropic SDKs against a base URL, unchanged: `sdk.py CASE BASE_URL`. Prints one JSON object.

It knows nothing of the proxy; what a case proves is asserted by the test that runs it.
"""

import json
import sys
import time

import anthropic
import openai

MESSAGES = [{"role": "user", "content": "Say something."}]


def client(base):
    return openai.OpenAI(base_url=f"{base}/v1", api_key="test", max_retries=0)


def whole(base):
    answer = client(base).chat.completions.create(model="mock", messages=MESSAGES)
    return {"text": answer.choices[0].message.content, "finish": answer.choices[0].finish_reason,
            "tokens": answer.usage.completion_tokens, "request_id": answer._request_id}


def stream(base):
    began = time.monotonic()
    pieces, arrivals = [], []
    for chunk in client(base).chat.completions.create(
            model="mock", messages=MESSAGES, stream=True, stream_options={"include_usage": True},
            extra_headers={"X-Mock-Tokens": "20", "X-Mock-Tokens-Per-Second": "20"}):
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
            arrivals.append(time.monotonic() - began)
        usage = chunk.usage
    return {"pieces": len(pieces), "first_s": arrivals[0], "last_s": arrivals[-1],
            "tokens": usage.completion_tokens}


def cancel(base):
    answer = client(base).chat.completions.create(
        model="mock", messages=MESSAGES, stream=True,
        extra_headers={"X-Mock-Tokens": "100000", "X-Mock-Tokens-Per-Second": "50", "X-Request-ID": "cancelled"})
    seen = 0
    for chunk in answer:
        seen += bool(chunk.choices and chunk.choices[0].delta.content)
        if seen == 3:
            break
    answer.response.close()
    return {"seen": seen, "closed_ns": time.monotonic_ns()}


def errors(base):
    """Each error of the proxy's own is the exception that the SDK has for its status."""
    found = {}
    for name, path in [("no_route", "/nowhere"), ("refused", "/refused"), ("slow", "/slow")]:
        sdk = openai.OpenAI(base_url=f"{base}{path}", api_key="test", max_retries=0)
        try:
            sdk.chat.completions.create(model="mock", messages=MESSAGES,
                                        extra_headers={"X-Mock-Stall-Before": "1m"})
            found[name] = None
        except openai.APIStatusError as error:
            found[name] = {"class": type(error).__name__, "status": error.status_code, "code": error.code,
                           "type": error.type, "message": error.message, "request_id": error.request_id,
                           "body_id": error.body.get("request_id")}
    return found


def anthropic_stream(base):
    sdk = anthropic.Anthropic(base_url=base, api_key="test", max_retries=0)
    pieces = []
    with sdk.messages.stream(model="mock", max_tokens=20, messages=MESSAGES,
                             extra_headers={"X-Mock-Tokens": "20"}) as answer:
        for text in answer.text_stream:
            pieces.append(text)
        final = answer.get_final_message()
    return {"pieces": len(pieces), "same": "".join(pieces) == final.content[0].text, "stop": final.stop_reason,
            "tokens": final.usage.output_tokens}


def embeddings(base):
    answer = client(base).embeddings.create(model="mock", input=["a", "b"])
    return {"vectors": len(answer.data), "dimensions": len(answer.data[0].embedding)}


CASES = {"whole": whole, "stream": stream, "cancel": cancel, "errors": errors,
         "anthropic_stream": anthropic_stream, "embeddings": embeddings}

print(json.dumps(CASES[sys.argv[1]](sys.argv[2])))
