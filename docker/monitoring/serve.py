"""Start one of the monitoring services, its configuration rendered from the environment.

    serve.py prometheus | alertmanager | node | gatewaylog
    serve.py --render DIR      writes the configuration and starts nothing
    serve.py health PORT/PATH  for Docker

Standard library alone. In prometheus.yml, alertmanager.yml and rules.yml `@NAME@` stands for the environment's NAME, DEFAULTS where that is empty.
"""

import http.client
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
DEFAULTS = {
    "MONITORING_INTERVAL_S": "15", "MONITORING_HOLD_S": "300", "MONITORING_RETENTION_DAYS": "15", "MONITORING_DISK_MIB": "2048",
    "SLO_TTFT_P95_S": "2", "SLO_ITL_P95_S": "0.1", "SLO_E2E_P99_S": "120", "SLO_QUEUE_P95_S": "5", "SLO_ERRORS": "0.01",
    "SLO_WAITING": "100", "SLO_REFUSED_PER_MINUTE": "30", "ENGINE_PORT": "8000",
}
"""As in env/base.env."""
WEBHOOK = Path("/run/secrets/monitoring_webhook")


def rendered(text: str, values: dict[str, str]) -> str:
    """`text` with every @NAME@ replaced. Raises KeyError where a name has no value."""
    return re.sub(r"@([A-Z0-9_]+)@", lambda found: values[found[1]], text)


def render(folder: Path, environ: dict[str, str]) -> None:
    """Write the three files into `folder`."""
    values = {name: environ.get(name) or default for name, default in DEFAULTS.items()}
    there = (environ.get("MONITORING_ENGINES") or "engine").split()
    values["ENGINES"] = '", "'.join(f"{name}:{values['ENGINE_PORT']}" for name in there)
    values["WATCHES"] = '", "'.join(f"{name}:8001" for name in there)
    values["RECEIVER"] = "webhook" if WEBHOOK.is_file() and WEBHOOK.stat().st_size else "nobody"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("prometheus.yml", "alertmanager.yml", "rules.yml"):
        (folder / name).write_text(rendered((HERE / name).read_text(), values))


def command(service: str, folder: Path, environ: dict[str, str]) -> list[str]:
    """What runs as `service`."""
    def value(name: str) -> str:
        return environ.get(name) or DEFAULTS[name]

    return {
        "prometheus": ["prometheus", f"--config.file={folder}/prometheus.yml", "--storage.tsdb.path=/data", "--web.listen-address=:9090",
                       f"--storage.tsdb.retention.time={value('MONITORING_RETENTION_DAYS')}d",
                       f"--storage.tsdb.retention.size={value('MONITORING_DISK_MIB')}MB", "--storage.tsdb.wal-compression",
                       "--query.max-concurrency=8", "--query.timeout=30s", "--query.max-samples=5000000", "--log.level=warn"],
        "alertmanager": ["prometheus-alertmanager", f"--config.file={folder}/alertmanager.yml", "--storage.path=/data/alertmanager",
                         "--web.listen-address=:9093", "--cluster.listen-address=", "--log.level=warn"],
        # What a container can see of its host without any mount of it: processors, memory, disks, and the disk that Docker writes to.
        "node": ["prometheus-node-exporter", "--web.listen-address=:9100", "--collector.disable-defaults", "--collector.cpu", "--collector.meminfo",
                 "--collector.loadavg", "--collector.filesystem", "--collector.filesystem.mount-points-exclude=^/(proc|sys|dev|run)($|/)",
                 "--collector.diskstats", "--collector.vmstat", "--collector.time"],
        "gatewaylog": [sys.executable, str(HERE / "gatewaylog.py")],
    }[service]


def health(target: str) -> int:
    """For Docker: 0 where PORT/PATH answers 200, else 1 and why. Not urllib: a proxy of Docker's client would be asked instead."""
    port, _, path = target.partition("/")
    try:
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
        connection.request("GET", f"/{path}")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"GET {target}: {error}")  # noqa: T201  (Docker keeps it as the reason)
        return 1
    if status != 200:
        print(f"GET {target}: HTTP {status}")  # noqa: T201
    return int(status != 200)


def main() -> int:
    if sys.argv[1] == "--render":
        render(Path(sys.argv[2]), dict(os.environ))
        return 0
    if sys.argv[1] == "health":
        return health(sys.argv[2])
    service, folder = sys.argv[1], Path("/tmp")  # noqa: S108  (a tmpfs of the container's own)
    render(folder, dict(os.environ))
    argv = command(service, folder, dict(os.environ))
    os.execvp(argv[0], argv)  # noqa: S606  (a list of arguments, and no shell)
    raise AssertionError


if __name__ == "__main__":
    sys.exit(main())
