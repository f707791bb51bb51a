"""The engine's image with a stand-in for vLLM in it: entrypoint, watch and health checks are real, and it starts in seconds.

It streams made-up tokens, and stops as vLLM 0.32.0 was seen to: from SIGTERM on new requests get 500, those that run end, then it ends with 0.
What is found with it says how Swarm, the gateway and the entrypoint go together, and nothing about vLLM.
"""

import io
import subprocess
import tarfile

BODY = '''
import http.server, json, signal, threading, time

state = {"running": 0, "tokens": 0, "done": 0, "stopping": False}
lock = threading.Lock()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def say(self, status, body, kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/metrics":
            lines = [("num_requests_running", state["running"]), ("num_requests_waiting", 0), ("generation_tokens_total", state["tokens"]),
                     ("prompt_tokens_total", state["tokens"]), ("request_success_total", state["done"])]
            self.say(200, "".join(f'vllm:{name}{{engine="0"}} {value}.0\\n' for name, value in lines).encode(), "text/plain")
        else:
            self.say(200, {"object": "list", "data": [{"id": "selftest", "object": "model"}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if state["stopping"]:
            return self.say(500, {"error": {"message": "EngineCore stops", "type": "InternalServerError", "param": None, "code": 500}})
        with lock:
            state["running"] += 1
        try:
            self.answer(asked)
        finally:
            with lock:
                state["running"] -= 1
                state["done"] += 1

    def answer(self, asked):
        count = asked.get("max_tokens", 16)
        usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
        choice = {"index": 0, "text": "x", "finish_reason": None}
        if asked.get("stream"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        for _ in range(count):
            time.sleep(TOKEN_S)
            state["tokens"] += 1
            if asked.get("stream"):
                self.event(json.dumps({"choices": [choice]}))
        if asked.get("stream"):
            self.event(json.dumps({"choices": [], "usage": usage}))
            self.event("[DONE]")
            self.wfile.write(b"0\\r\\n\\r\\n")
        else:
            self.say(200, {"object": "text_completion", "choices": [{**choice, "text": "x" * count}], "usage": usage})

    def event(self, text):
        data = f"data: {text}\\n\\n".encode()
        self.wfile.write(f"{len(data):x}\\r\\n".encode() + data + b"\\r\\n")

    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

server = Server(("", 8000), Handler)

def stop(*_):
    def finish():
        state["stopping"] = True
        while state["running"]:
            time.sleep(0.05)
        server.shutdown()
    threading.Thread(target=finish).start()

signal.signal(signal.SIGTERM, stop)
print("INFO: Application startup complete.", flush=True)
server.serve_forever()
'''.replace("TOKEN_S", "0.05")
RECIPE = """FROM {image}
COPY --chmod=0755 stand-in /stand-in
ENV PYTHONPATH=/stand-in
"""


def build(image: str) -> str:
    """The name of the image that is `image` with the stand-in in it."""
    name = f"{image}-stand-in"
    package = "stand-in/vllm/entrypoints/cli/"
    texts = {"Dockerfile": RECIPE.format(image=image), f"{package}main.py": BODY}
    texts |= {f"{'/'.join(package.split('/')[:depth])}/__init__.py": "" for depth in (2, 3, 4)}
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for path, text in texts.items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(text.encode()), 0o644
            tar.addfile(member, io.BytesIO(text.encode()))
    subprocess.run(["docker", "build", "--quiet", "--tag", name, "-"], input=context.getvalue(), check=True, timeout=300, capture_output=True)
    return name
