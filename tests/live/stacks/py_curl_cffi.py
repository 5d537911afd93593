"""curl_cffi: every step is a POST on one connection; its body is what is sent, and the response's what is received."""

from __future__ import annotations

from io import BytesIO

from curl_cffi import Curl, CurlHttpVersion, CurlInfo, CurlOpt  # type: ignore[import-not-found,unused-ignore]
from live.stacks.plan import SERVER_NAME, task


def text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def main() -> None:
    job = task(loaded_late=True)
    curl = Curl()
    local, remote = set(), set()
    for content, size in job.steps():
        body = BytesIO()
        curl.setopt(CurlOpt.URL, f"https://{SERVER_NAME}:{job.port}/{size}".encode())
        curl.setopt(CurlOpt.RESOLVE, [f"{SERVER_NAME}:{job.port}:{job.host}"])
        curl.setopt(CurlOpt.HTTP_VERSION, CurlHttpVersion.V1_1)
        curl.setopt(CurlOpt.SSL_VERIFYPEER, 0)
        curl.setopt(CurlOpt.POST, 1)
        curl.setopt(CurlOpt.HTTPHEADER, [b"Expect:", b"Content-Type: application/octet-stream"])
        curl.setopt(CurlOpt.POSTFIELDS, content)
        curl.setopt(CurlOpt.POSTFIELDSIZE_LARGE, len(content))
        curl.setopt(CurlOpt.WRITEDATA, body)
        curl.perform()
        answer = body.getvalue()
        assert len(answer) == size, f"{len(answer)} bytes for {size}"
        job.incoming.write(answer)
        local.add((text(curl.getinfo(CurlInfo.LOCAL_IP)), curl.getinfo(CurlInfo.LOCAL_PORT)))
        remote.add((text(curl.getinfo(CurlInfo.PRIMARY_IP)), curl.getinfo(CurlInfo.PRIMARY_PORT)))
    version = " ".join(text(curl.version()).split()[:2])  # of libcurl and its TLS library
    curl.close()
    (only_local,), (only_remote,) = local, remote
    job.finish(only_local, only_remote, version)


main()
