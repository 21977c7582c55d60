"""Stands in for the W&B server: takes runs and artifacts, and keeps who made and who used them."""

from __future__ import annotations

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Listens on a free port of this machine.

    Attributes:
        artifacts: by (type, name, digest): id, state, the run that made it and those that use it.
        uploads: content by path.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.artifacts: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""

    def answer(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What the server replies to a GraphQL operation."""
        by_id = {artifact["id"]: artifact for artifact in self.artifacts.values()}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if name == "UpsertBucket":
            project = {"id": "1", "name": asked["project"], "entity": {"id": "2", "name": "team"}}
            bucket = {"id": "3", "name": asked["name"], "displayName": "", "config": "{}", "historyLineCount": 0}
            return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/run/{asked['run']}/{file}"} for file in asked["files"]]
            return {"createRunFiles": {"runID": "3", "uploadHeaders": [], "files": files}}
        if name == "CreateArtifact":
            put = asked["input"]
            key = put["artifactTypeName"], put["artifactCollectionName"], put["digest"]
            fresh = {"id": f"id{len(self.artifacts)}", "state": "PENDING", "made_by": put.get("runName"), "used_by": []}
            found = self.artifacts.setdefault(key, fresh)
            artifact = {"id": found["id"], "state": found["state"], "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": artifact}}
        if name == "CreateArtifactManifest":
            file = {"id": "4", "uploadUrl": f"{self.url}/manifest/{asked['artifactID']}", "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "5", "file": file}}}
        if name == "CreateArtifactFiles":
            edges = [{"node": self.artifact_file(spec)} for spec in asked["input"]["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if name == "CommitArtifact":
            by_id[asked["artifactID"]]["state"] = "COMMITTED"
            return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": ""}}}
        assert name == "UseArtifact", f"unexpected: {name}"
        by_id[asked["input"]["artifactID"]]["used_by"].append(asked["input"]["runName"])
        return {"useArtifact": {"artifact": {"id": asked["input"]["artifactID"]}}}

    def artifact_file(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Where a file of an artifact is to be sent."""
        url = f"{self.url}/artifact/{spec['artifactID']}/{spec['name']}"
        plain: dict[str, Any] = {"storagePath": "", "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
        return {**plain, "artifact": {"id": spec["artifactID"]}}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""

    def do_PUT(self) -> None:
        """Keeps a file."""
        self.server.uploads[self.path] = self.body()
        self.reply({})

    def do_POST(self) -> None:
        """Answers GraphQL; takes all else."""
        body = self.body()
        if self.path != "/graphql":
            return self.reply({})
        request = json.loads(body)
        name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        assert name is not None
        with self.server.lock:
            self.reply({"data": self.server.answer(name[1], request.get("variables") or {})})

    def body(self) -> bytes:
        """What was sent."""
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def reply(self, content: dict[str, Any]) -> None:
        """Sends JSON."""
        raw = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
