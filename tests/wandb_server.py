"""A Weights & Biases server on this machine, as much of it as the client asks for.

It keeps runs by their id, and lines of a streamed file by their offset, as the real one does. So a line that
is sent twice lies there once, and one that is sent again with another value has replaced the first.
"""

import base64
import json
import re
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

KEY = "0123456789" * 4
ENTITY = "team"
_STREAM = re.compile(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream")
HISTORY, EVENTS = "wandb-history.jsonl", "wandb-events.jsonl"


@dataclass
class Run:
    """What the server knows of a run.

    Attributes:
        fields: variables of the newest `UpsertBucket` that named them: displayName, groupName, tags, ...
        files: lines by offset, by the name of the streamed file.
        replaced: (file, offset, old line, new line) of every line that was sent again with another value.
        exits: exit codes with which it was completed, in order.
        complete: whether it has ended; a run that is streamed to again is open again.
        alerts: (title, severity).
        uploaded: bytes of every file by name.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    replaced: list[tuple[str, int, str, str]] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    complete: bool = False
    alerts: list[tuple[str, str]] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """Configuration by key."""
        return {key: entry["value"] for key, entry in json.loads(self.fields["config"]).items()}

    @property
    def summary(self) -> dict[str, Any]:
        """What the overview of the run shows."""
        lines = self.files["wandb-summary.json"]
        return json.loads(lines[max(lines)]) if lines else {}

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows in order of their offset."""
        return [json.loads(line) for _, line in sorted(self.files[HISTORY].items())]


@dataclass
class Wandb:
    """The server's state, and how it behaves.

    Attributes:
        runs: by id.
        artifacts: by id: the variables of `CreateArtifact` and whether it was committed.
        used: ids of artifacts that a run declared as its inputs.
        asked: name of every GraphQL operation, in order.
        sweep: the configuration that was registered, as JSON.
        trials: arguments of what an agent is told to run, one each time it asks; then it is told to end.
        delay: seconds before every answer.
        status: answer everything with this HTTP status instead.
    """

    runs: dict[str, Run] = field(default_factory=lambda: defaultdict(Run))
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    delay: float = 0.0
    status: int | None = None
    url: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)
    sweep: str = ""
    trials: list[dict[str, Any]] = field(default_factory=list)

    def environment(self, root, key=KEY):
        """Variables by which a client finds this server, and keeps its own files below ``root``."""
        places = {f"WANDB_{name}_DIR": f"{root}/home" for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": key, "HOME": f"{root}/home", **places}

    def answer(self, operation: str, query: str, values: dict[str, Any]) -> dict[str, Any]:
        """Answer a GraphQL operation; None for every field it is not prepared for."""
        self.asked.append(operation)
        answer = getattr(self, f"_{operation}", None)
        return answer(values) if answer is not None else {}

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        """Take lines of a run's streamed files."""
        run = self.runs[run_id]
        for name, chunk in body.get("files", {}).items():
            for offset, line in enumerate(chunk["content"], chunk["offset"]):
                old = run.files[name].get(offset, line)
                if old != line and name == HISTORY:
                    run.replaced.append((name, offset, old, line))
                run.files[name][offset] = line
        run.complete = bool(body.get("complete"))
        if run.complete:
            run.exits.append(body["exitcode"])

    # What follows is named as the client's operations are.

    def _Viewer(self, _values):
        team = {"edges": [{"node": {"name": ENTITY}}]}
        return {
            "viewer": {
                "id": "u1", "entity": ENTITY, "username": "user", "email": "u@example.org", "flags": "{}",
                "teams": team,
            },
            "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []},
        }  # fmt: skip

    def _ServerFeaturesQuery(self, _values):
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, values):
        run = self.runs.get(values["name"])
        project = {"id": "p1", "name": values["project"], "entity": {"id": "e1", "name": ENTITY}}
        return {"model": {**project, "bucket": run and self._bucket(values["name"], run)}}

    def _UpsertBucket(self, values):
        name = values.get("name") or values["id"]
        inserted = name not in self.runs
        run = self.runs[name]
        run.fields.update({key: value for key, value in values.items() if value is not None})
        project = {"id": "p1", "name": run.fields["project"], "entity": {"id": "e1", "name": ENTITY}}
        return {
            "upsertBucket": {"bucket": {**self._bucket(name, run), "project": project}, "inserted": inserted}
        }

    def _bucket(self, name, run):
        last = {
            key: json.dumps([line for _, line in sorted(run.files[key].items())][-1:])
            for key in (HISTORY, EVENTS)
        }
        return {
            "id": name, "name": name, "displayName": run.fields.get("displayName"),
            "description": None, "sweepName": run.fields.get("sweep"), "notes": None,
            "config": run.fields.get("config", "{}"), "tags": run.fields.get("tags"),
            "summaryMetrics": json.dumps(run.summary), "wandbConfig": '{"t":1}',
            "historyLineCount": len(run.files[HISTORY]), "historyTail": last[HISTORY],
            "eventsLineCount": len(run.files[EVENTS]), "eventsTail": last[EVENTS],
            "logLineCount": len(run.files["output.log"]),
        }  # fmt: skip

    def _NotifyScriptableRunAlert(self, values):
        self.runs[values["runName"]].alerts.append((values["title"], values["severity"]))
        return {"notifyScriptableRunAlert": {"success": True}}

    def _CreateRunFiles(self, values):
        files = [
            {"name": name, "uploadUrl": f"{self.url}/put/{values['run']}/{name}"} for name in values["files"]
        ]
        return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, values):
        wanted = values["input"]
        known = [key for key, one in self.artifacts.items() if one["digest"] == wanted["digest"]]
        key = known[0] if known else f"a{len(self.artifacts)}"
        self.artifacts.setdefault(key, {**wanted, "state": "PENDING"})
        state = self.artifacts[key]["state"]
        return {
            "createArtifact": {
                "artifact": {"id": key, "state": state, "artifactSequence": {"latestArtifact": None}}
            }
        }

    def _manifest(self, operation, key):
        file = {"id": f"{key}-manifest", "uploadUrl": f"{self.url}/put/artifacts/{key}", "uploadHeaders": []}
        return {operation: {"artifactManifest": {"id": f"{key}-manifest", "file": file}}}

    def _CreateArtifactManifest(self, values):
        return self._manifest("createArtifactManifest", values["artifactID"])

    def _UpdateArtifactManifest(self, values):
        return self._manifest(
            "updateArtifactManifest", values["artifactManifestID"].removesuffix("-manifest")
        )

    def _CreateArtifactFiles(self, values):
        nodes = [
            {
                "storagePath": one["name"], "uploadUrl": f"{self.url}/put/{one['artifactID']}/{one['name']}",
                "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": one["artifactID"]},
            }
            for one in values["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, values):
        artifact = self.artifacts[values["artifactID"]]
        artifact["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": values["artifactID"], "digest": artifact["digest"]}}}

    def _UseArtifact(self, values):
        self.used.append(values["input"]["artifactID"])
        return {"useArtifact": {"artifact": {"id": values["input"]["artifactID"]}}}

    def _UpsertSweep(self, values):
        self.sweep = values["config"]
        project = {"name": values["projectName"], "entity": {"name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": "s1", "project": project}, "configValidationWarnings": []}}

    def _SweepWithRuns(self, _values):
        sweep = {"id": "s1", "name": "s1", "state": "RUNNING", "config": self.sweep, "runs": {"edges": []}}
        return {"project": {"sweep": sweep}}

    def _GetSweepState(self, _values):
        return {"project": {"sweep": {"state": "RUNNING"}}}

    def _CreateAgent(self, _values):
        return {"createAgent": {"agent": {"id": "g1"}}}

    def _Heartbeat(self, values):
        commands: list[dict[str, Any]] = [{"type": "exit"}]
        if any(json.loads(values["runState"]).values()):
            commands = []  # one at a time
        elif self.trials:
            args = {key: {"value": value} for key, value in self.trials.pop(0).items()}
            commands = [
                {"type": "run", "run_id": f"trial{len(self.trials)}", "args": args, "program": "distllm"}
            ]
        return {"agentHeartbeat": {"agent": {"id": "g1"}, "commands": json.dumps(commands)}}

    def _ArtifactType(self, _values):
        return {"project": {"artifact": None}}

    def _XXHashDigestsEnabled(self, _values):
        return {"entity": {"xxhashDigestsEnabled": False}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_arguments):
        """Say nothing."""

    def do_POST(self):
        """Answer GraphQL and file streams."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        wandb = self.server.wandb
        time.sleep(wandb.delay)
        path = urlsplit(self.path).path
        if wandb.status is not None:
            return self._reply(wandb.status, {"errors": [{"message": "out of order"}]})
        if self._key() != KEY:
            return self._reply(401, {"errors": [{"message": "user is not logged in"}]})
        sent = json.loads(body)
        with wandb.lock:
            if stream := _STREAM.fullmatch(path):
                wandb.stream(stream[3], sent)
                return self._reply(200, {})
            operation = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
            name = operation[1] if operation else "Anonymous"
            return self._reply(200, {"data": wandb.answer(name, sent["query"], sent.get("variables") or {})})

    def do_PUT(self):
        """Take a file."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.wandb.delay)
        _, run_id, name = urlsplit(self.path).path.removeprefix("/").split("/", 2)
        with self.server.wandb.lock:
            if run_id in self.server.wandb.runs:  # and not an artifact, of which the digest is enough
                self.server.wandb.runs[run_id].uploaded[name] = body
        self._reply(200, {})

    def do_GET(self):
        """Have nothing."""
        self._reply(404, {})

    def _key(self):
        words = self.headers.get("Authorization", "").split()
        return base64.b64decode(words[1]).decode().partition(":")[2] if len(words) == 2 else ""

    def _reply(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        """Say nothing: clients that are killed leave connections behind."""


@contextmanager
def serve(wandb=None, port=0):
    """Run the server on a thread; yield its state. ``port`` brings one back where another was."""
    wandb = wandb or Wandb()
    with _Server(("127.0.0.1", port), _Handler) as server:
        server.wandb = wandb
        wandb.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield wandb
        finally:
            server.shutdown()
            thread.join()
