#!/usr/bin/env python3
"""Grafana dashboards as code: writes charts/agent-executor/dashboards/*.json; `--check` only compares.

A dashboard is rows of panels; a panel is a title, a unit, a kind and its expressions. Every expression is narrowed to the
namespace and job chosen at the top of the dashboard, which `SELECT` stands for.
"""
import json
import pathlib
import sys

TARGET = pathlib.Path(__file__).resolve().parent.parent / "charts/agent-executor/dashboards"
SELECT = 'namespace=~"$namespace",job=~"$job"'
WINDOW = "$__rate_interval"


def rate(metric, by="", more=""):
    """Per second, summed over all pods."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped}(rate({metric}{{{SELECT}{more}}}[{WINDOW}]))"


def total(metric, by="", more=""):
    """A gauge, summed over all pods."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped}({metric}{{{SELECT}{more}}})"


def quantile(share, metric, by=""):
    """A quantile of a histogram over all pods."""
    grouped = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({grouped}) (rate({metric}_bucket{{{SELECT}}}[{WINDOW}])))"


def quantiles(metric):
    return [(f"p{int(share * 100)}", quantile(share, metric)) for share in (0.5, 0.95, 0.99)]


def mean(metric, by=""):
    return f"{rate(metric + '_sum', by)} / {rate(metric + '_count', by)}"


def share(part, whole):
    """A part of a whole, 0 when there is nothing."""
    return f"({part}) / clamp_min({whole}, 1e-9)"


A = "agent_executor_"
DASHBOARDS = {
    "overview": ("Overview", [
        ("Jobs", [
            ("Jobs that end, by status", "ops", [("{{status}}", rate(A + "jobs_total", "status"))]),
            ("Share of failed jobs", "percentunit", [
                ("failed", share(rate(A + "jobs_total", more=',status="failed"'), rate(A + "jobs_total")))]),
            ("Failures by code", "ops", [("{{code}}", rate(A + "job_failures_total", "code"))]),
            ("Duration of a job", "s", quantiles(A + "job_duration_seconds")),
            ("Time to the first token", "s", quantiles(A + "time_to_first_token_seconds")),
        ]),
        ("Load", [
            ("Requests that wait in the queue", "short", [
                ("waiting", f"max({A}queue_pending{{{SELECT}}})")]),
            ("Jobs in flight, by pod", "short", [("{{pod}}", total(A + "jobs_in_flight", "pod"))]),
            ("Pods by version", "short", [("{{version}}", f"count by (version) ({A}build_info{{{SELECT}}})")]),
            ("Supersteps", "ops", [("supersteps", rate(A + "supersteps_total"))]),
            ("How full each limit is", "percentunit", [
                ("{{kind}}", f"max by (kind) ({A}in_use{{{SELECT}}} / ({A}limit{{{SELECT}}} > 0))")]),
            ("Turned away because of a limit", "ops", [("{{kind}}", rate(A + "turned_away_total", "kind"))]),
        ]),
    ]),
    "nodes": ("Nodes", [
        ("Nodes", [
            ("Tasks, by node", "ops", [("{{node}}", rate(A + "node_seconds_count", "node"))]),
            ("95th percentile of a task, by node", "s", [("{{node}}", quantile(0.95, A + "node_seconds", "node"))]),
            ("Mean time of a task, by node", "s", [("{{node}}", mean(A + "node_seconds", "node"))]),
            ("Where the time goes", "percentunit", [
                ("{{node}}", f"{rate(A + 'node_seconds_sum', 'node')} / ignoring(node) group_left() "
                             f"{rate(A + 'node_seconds_sum')}")]),
            ("Supersteps per job", "short", [
                ("supersteps", share(rate(A + "supersteps_total"), rate(A + "jobs_total")))]),
            ("Tries of nodes again, by class of the error", "ops", [("{{class}}", rate(A + "node_retries_total", "class"))]),
            ("Errors that went to another node", "ops", [("{{class}}", rate(A + "node_errors_routed_total", "class"))]),
            ("Cache of nodes", "ops", [("{{outcome}}", rate(A + "node_cache_total", "outcome"))]),
        ]),
    ]),
    "models": ("Models", [
        ("Calls", [
            ("Calls, by model", "ops", [
                ("{{provider}} {{model}}", rate(A + "llm_request_seconds_count", "provider, model"))]),
            ("95th percentile of a call", "s", [
                ("{{provider}} {{model}}", quantile(0.95, A + "llm_request_seconds", "provider, model"))]),
            ("Failed calls, before retries", "ops", [
                ("{{provider}} {{code}}", rate(A + "llm_failures_total", "provider, code"))]),
            ("Rate limits of the providers", "ops", [
                ("{{provider}}", rate(A + "llm_failures_total", "provider", ',code="MODEL_THROTTLED"'))]),
            ("Calls at once, of the most allowed", "percentunit", [
                ("model calls", f'max({A}in_use{{{SELECT},kind="model_calls"}} / {A}limit{{{SELECT},kind="model_calls"}})')]),
        ]),
        ("Limits of the providers", [
            ("Calls that wait for their turn", "short", [("{{provider}}", total(A + "llm_waiting", "provider"))]),
            ("95th percentile of a wait", "s", [("{{provider}}", quantile(0.95, A + "llm_wait_seconds", "provider"))]),
            ("Pods that do not ask a provider, because it fails", "short", [
                ("{{provider}}", total(A + "llm_breaker_open", "provider"))]),
            ("Share of pods that share the limits", "percentunit", [
                ("{{provider}}", f"avg by (provider) ({A}llm_limits_shared{{{SELECT}}})")]),
        ]),
        ("Tokens", [
            ("Tokens, by kind", "ops", [("{{kind}}", rate(A + "llm_tokens_total", "kind"))]),
            ("Tokens, by model", "ops", [
                ("{{provider}} {{model}} {{kind}}", rate(A + "llm_tokens_total", "provider, model, kind"))]),
            ("Input that came from the provider's cache", "percentunit", [
                ("{{provider}} {{model}}", rate(A + "llm_tokens_total", "provider, model", ',kind="cache_read"')
                 + " / " + rate(A + "llm_tokens_total", "provider, model", ',kind="input"'))]),
            ("Cost per hour, by model", "currencyUSD", [
                ("{{provider}} {{model}}", "3600 * " + rate(A + "llm_cost_usd_total", "provider, model"))]),
            ("Calls whose price is not known", "ops", [
                ("{{provider}} {{model}}", rate(A + "llm_unpriced_calls_total", "provider, model"))]),
            ("Kept answers, by outcome of the look", "ops", [
                ("{{outcome}}", rate(A + "llm_cache_total", "outcome"))]),
            ("Time to the first token", "s", quantiles(A + "time_to_first_token_seconds")),
        ]),
    ]),
    "tools": ("Tools", [
        ("Calls", [
            ("Calls, by tool", "ops", [("{{tool}}", rate(A + "tool_calls_total", "tool"))]),
            ("Calls, by status", "ops", [("{{status}}", rate(A + "tool_calls_total", "status"))]),
            ("Calls, by tool and status", "ops", [
                ("{{tool}} {{status}}", rate(A + "tool_calls_total", "tool, status"))]),
            ("Failed calls, before they are made again", "ops", [
                ("{{tool}} {{code}}", rate(A + "tool_failures_total", "tool, code"))]),
            ("Calls with effects, by outcome", "ops", [("{{outcome}}", rate(A + "effects_total", "outcome"))]),
            ("Requests at once, of the most allowed", "percentunit", [
                ("tool calls", f'max({A}in_use{{{SELECT},kind="tool_calls"}} / {A}limit{{{SELECT},kind="tool_calls"}})')]),
        ]),
    ]),
    "reliability": ("Reliability", [
        ("Messages", [
            ("Messages settled", "ops", [
                ("done", rate(A + "nats_messages_processed_total")), ("not done", rate(A + "nats_messages_failed_total"))]),
            ("Deliveries after the first", "ops", [("redeliveries", rate(A + "redeliveries_total"))]),
            ("Dead letters, by reason", "short", [
                ("{{reason}}", f"sum by (reason) (increase({A}dead_letters_total{{{SELECT}}}[1h]))")]),
            ("Messages the broker had forgotten", "ops", [
                ("{{action}}", rate(A + "reconciled_messages_total", "action"))]),
        ]),
        ("Processes", [
            ("Jobs taken up after a death", "ops", [("adopted", rate(A + "adopted_jobs_total"))]),
            ("Jobs handed on by drains", "ops", [("handed back", rate(A + "jobs_handed_back_total"))]),
            ("Writes refused after a thread was lost", "ops", [("fenced", rate(A + "fenced_writes_total"))]),
            ("Results published for others", "ops", [("relayed", rate(A + "relayed_results_total"))]),
        ]),
        ("Live events", [
            ("Events sent, by type", "ops", [("{{event_type}}", rate(A + "redis_publish_total", "event_type"))]),
            ("Events dropped, by type", "ops", [("{{event_type}}", rate(A + "stream_dropped_total", "event_type"))]),
            ("Failed sends", "ops", [("errors", rate(A + "redis_publish_errors_total"))]),
        ]),
    ]),
    "postgres": ("Postgres", [
        ("Commits", [
            ("Latency of a commit", "s", quantiles(A + "checkpoint_commit_seconds")),
            ("Commits", "ops", [("commits", rate(A + "checkpoint_commit_seconds_count"))]),
            ("Commits per statement", "short", [
                ("mean", mean(A + "checkpoint_batch_size")), ("p95", quantile(0.95, A + "checkpoint_batch_size"))]),
            ("Statements", "ops", [("statements", rate(A + "checkpoint_batch_size_count"))]),
            ("Failed attempts to reach Postgres", "ops", [("errors", rate(A + "db_connection_errors_total"))]),
        ]),
    ]),
}

WIDTH, HEIGHT, PER_LINE = 8, 8, 3


def panel(number, place, title, unit, queries):
    line, column = divmod(place, PER_LINE)
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": column * WIDTH, "y": line * HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + at), "expr": expression, "legendFormat": legend}
            for at, (legend, expression) in enumerate(queries)
        ],
    }


def row(number, top, title):
    return {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
            "gridPos": {"h": 1, "w": 24, "x": 0, "y": top}}


def choice(name, query):
    """A variable that is read from Prometheus."""
    return {"name": name, "type": "query", "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": {"query": query, "refId": name}, "refresh": 2, "includeAll": True, "multi": True,
            "allValue": ".*", "current": {"text": "All", "value": "$__all"}}


def dashboard(slug, title, rows):
    panels, top, number = [], 0, 1
    for name, members in rows:
        panels.append(row(number, top, name))
        number, top = number + 1, top + 1
        for place, (heading, unit, queries) in enumerate(members):
            made = panel(number, place, heading, unit, queries)
            made["gridPos"]["y"] += top
            panels.append(made)
            number += 1
        top += -(-len(members) // PER_LINE) * HEIGHT
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus",
         "current": {"text": "default", "value": "default"}},
        choice("namespace", f"label_values({A}build_info, namespace)"),
        choice("job", f'label_values({A}build_info{{namespace=~"$namespace"}}, job)'),
    ]
    return {
        "uid": f"agent-executor-{slug}",
        "title": f"agent-executor / {title}",
        "tags": ["agent-executor"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["agent-executor"], "title": "agent-executor", "asDropdown": True}],
        "templating": {"list": variables},
        "panels": panels,
    }


def rendered():
    """File name and text of every dashboard."""
    return {f"{slug}.json": json.dumps(dashboard(slug, *what), indent=1, ensure_ascii=False) + "\n"
            for slug, what in DASHBOARDS.items()}


def main():
    files = rendered()
    if sys.argv[1:] == ["--check"]:
        there = {path.name: path.read_text() for path in TARGET.glob("*.json")}
        wrong = sorted(name for name in files.keys() | there.keys() if files.get(name) != there.get(name))
        if wrong:
            sys.exit(f"not what observability/dashboards.py makes: {', '.join(wrong)}; run it again")
        return
    TARGET.mkdir(exist_ok=True)
    for path in TARGET.glob("*.json"):
        path.unlink()
    for name, text in files.items():
        (TARGET / name).write_text(text)


if __name__ == "__main__":
    main()
