"""Drives the engine with docker-py through its named pipe."""

from __future__ import annotations

import docker
import win32file

from wherry.paths import Home

pipe = str(Home.default().machine("default").api_socket).replace("\\", "/")
client = docker.DockerClient(base_url=f"npipe://{pipe}")
print(client.version()["Os"])
print(client.containers.run("localhost/busybox", ["echo", "hello"], remove=True).decode().strip())
box = client.containers.create("localhost/busybox", ["cat"], stdin_open=True)
stream = box.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
box.start()
stream.sendall(b"through the pipe\n")
win32file.WriteFile(stream._handle, b"")  # as Docker's own client says that no more comes
print(box.wait(timeout=30)["StatusCode"])
print(box.logs().decode().strip())
box.remove()
