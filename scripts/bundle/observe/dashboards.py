"""Grafana's dashboards, made from the page's own panels: docker/gateway/page/panels.json is the one source of both.

    python3 scripts/bundle/observe/dashboards.py        writes docker/monitoring/grafana/*.json anew
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PANELS = ROOT / "docker/gateway/page/panels.json"
FOLDER = ROOT / "docker/monitoring/grafana"
_UNITS = {"s": "s", "%": "percent", "W": "watt", "°C": "celsius", "req/s": "reqps"}


def rendered() -> dict[str, str]:
    """The dashboards' JSON by file name, in Grafana's own model of them."""
    source = json.loads(PANELS.read_text())
    boards: dict[str, list[Any]] = {}
    for panel in source["panels"]:
        boards.setdefault(panel["board"], []).append(panel)
    return {f"{board}.json": json.dumps(_dashboard(board, panels, source["marks"]), indent=1, ensure_ascii=False) + "\n"
            for board, panels in boards.items()}


def _dashboard(board: str, panels: list[Any], marks: Any) -> dict[str, Any]:
    prometheus = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "uid": f"vllm-bundle-{board}", "title": f"vLLM: {board}", "schemaVersion": 39, "refresh": "30s", "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "annotations": {"list": [{"name": "starts", "datasource": prometheus, "enable": True, "expr": marks["expr"],
                                  "titleFormat": marks["legend"]}]},
        "panels": [{"id": number + 1, "type": "timeseries", "title": panel["title"], "datasource": prometheus,
                    "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
                    "fieldConfig": {"defaults": {"unit": _UNITS.get(panel["unit"], "short")}, "overrides": []},
                    "targets": [{"refId": chr(ord("A") + at), "expr": one["expr"], "legendFormat": one["legend"]}
                                for at, one in enumerate(panel["series"])]} for number, panel in enumerate(panels)]}


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
