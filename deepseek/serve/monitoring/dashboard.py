"""The Grafana dashboard as JSON, made from the table of metrics. Source: Grafana's dashboard model, schema version 39.

Not here: which panels there are (see `panels`).
"""

from __future__ import annotations

import json
from typing import Any

from deepseek.serve.monitoring.panels import Panel, rows

_COLUMNS = 24
_WIDTH, _HEIGHT = 8, 7


def build_dashboard(title: str = "deepseek serve", uid: str = "deepseek-serve") -> dict[str, Any]:
    """Return the dashboard; its data source is a variable that Grafana lets one choose."""
    panels: list[dict[str, Any]] = []
    top = 0
    for name, charts in rows():
        panels.append(_row(len(panels) + 1, name, top))
        top += 1
        for place, chart in enumerate(charts):
            column, line = place * _WIDTH % _COLUMNS, place * _WIDTH // _COLUMNS
            panels.append(_chart(len(panels) + 1, chart, column, top + line * _HEIGHT))
        top += -(-len(charts) * _WIDTH // _COLUMNS) * _HEIGHT
    return {
        "title": title,
        "uid": uid,
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "tags": ["deepseek"],
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": panels,
    }


def dashboard_json() -> str:
    """Return the dashboard as the text of a file."""
    return json.dumps(build_dashboard(), indent=2, ensure_ascii=False) + "\n"


def _row(number: int, title: str, top: int) -> dict[str, Any]:
    place = {"h": 1, "w": _COLUMNS, "x": 0, "y": top}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _chart(number: int, panel: Panel, column: int, top: int) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    targets = [
        {"refId": chr(ord("A") + index), "datasource": source, "expr": query.expression, "legendFormat": query.legend}
        for index, query in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": source,
        "gridPos": {"h": _HEIGHT, "w": _WIDTH, "x": column, "y": top},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }
