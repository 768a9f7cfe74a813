"""What benchmarks of hosts share."""
import json
import os
import socket
import subprocess
import sys

BINARY = os.environ.get(
    "OUTBOARD_BINARY", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".build", "release", "outboard"))


def call(control, method):
    """The result of a request to a host's control socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(control)
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {}}
        connection.sendall(json.dumps(request).encode() + b"\n")
        response = json.loads(connection.makefile().readline())
    if "error" in response and response["error"]:
        sys.exit(f"{method}: {response['error']}")
    return response["result"]


def make_volume(path, gibibytes):
    """A file without zeros, which would cost no cache."""
    with open(path, "wb") as volume:
        block = os.urandom(1 << 20)
        for _ in range(gibibytes << 10):
            volume.write(block)
        os.fsync(volume.fileno())


def start(source, cache, nbd, control, *options):
    """A host that serves."""
    host = subprocess.Popen(
        [BINARY, "host", "--source", source, "--cache", cache, "--socket", nbd, "--control", control, *options],
        stdout=subprocess.PIPE, text=True)
    if not host.stdout.readline().startswith("ready"):
        sys.exit("the host did not start")
    return host
