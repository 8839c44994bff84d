"""`azekura status` and `azekura drain`: what the node is doing, and waiting until all is safe."""

import time
from typing import Annotated, Any

import typer

from appliance.cli import exit_codes, invocation

POLL_S = 0.3


def _document(call: invocation.Invocation) -> dict[str, Any]:
    from appliance.archive.status import node_status

    with call.parts(open_index=False) as parts:
        parts.try_index()
        return node_status(call.config, parts.layout, parts.index, parts.clock, parts.condition)


def _text(found: dict[str, Any]) -> str:
    from appliance.foundation.units import format_duration, format_size

    def duration(key: str, unknown: str) -> str:
        value = found[key]
        return unknown if value is None else format_duration(value)

    if found["studies"] is None:
        lines = [f"{found['node']} ({found['role']}), link {found['link']}"]
        lines += [f"node      {_node_line(each)}" for each in found["nodes"]]
        lines += [f"problem   {each['sentence']}" for each in found["problems"]]
        return "\n".join(lines)
    throttle = found["throttle_bytes_per_s"]
    pending = format_size(found["pending_bytes"])
    cached, capacity = format_size(found["cached_bytes"]), format_size(found["capacity_bytes"])
    rate = format_size(found["upload_rate_bytes_per_s"])
    limit = "off" if throttle is None else format_size(throttle) + "/s"
    count = found["pending_instances"]
    oldest = duration("oldest_pending_age_s", "none")
    empty = duration("time_to_drain_s", "unknown")
    if found["time_to_drain_s"] and found["time_to_drain_from"] != "now":
        empty += f" from {found['time_to_drain_from']}"
    full = duration("time_to_full_s", "no foreseeable time")
    lines = [
        f"{found['node']} ({found['role']}), link {found['link']}",
        f"archive   {found['studies']} studies, {found['instances']} instances",
        f"pending   {count} instances, {pending}, oldest {oldest}, empty in {empty}",
        f"cache     {cached} of {capacity}, full in {full}",
        f"upload    {rate}/s, throttle {limit}, ledger at {found['ledger_sequence']}",
    ]
    if found["role"] == "standby" or not found["accepts_stores"]:
        lines.append(f"stores    {_stores_line(found)}")
    lines += _scrub_lines(found["scrub"])
    lines += [f"replica   {each['name']}, link {each['link']}" for each in found["replicas"]]
    lines += [f"node      {_node_line(each)}" for each in found["nodes"]]
    lines += [
        f"follows   {it['node']}, at {it['applied_sequence']} of {it['last_sequence']}"
        for it in found["following"]
    ]
    drill = found["last_drill"]
    if drill is not None:
        lines.append(
            f"drill     {drill['at'][:10]}, {drill['matched']} of {drill['instances']} instances "
            f"came back, the first after {format_duration(drill['first_instance_s'])}"
        )
    lines += [f"problem   {each['sentence']}" for each in found["problems"]]
    return "\n".join(lines)


def _stores_line(found: dict[str, Any]) -> str:
    return "new studies are taken" if found["accepts_stores"] else f"refused: {found['refusal']}"


def _node_line(node: dict[str, Any]) -> str:
    """Return what is to be said of another node."""
    text = f"{node['node']}"
    if node["role"]:
        text += f" ({node['role']})"
    match node["state"]:
        case "unknown":
            text += " is not heard" + (f", last at {node['heard_at']}" if node["heard_at"] else "")
        case "alive":
            text += f" is alive, last heard at {node['heard_at']}"
        case state:
            text += f" is {state}" + (f" since {node['since']}" if node["since"] else "")
    return text


def _scrub_lines(found: dict[str, Any]) -> list[str]:
    if not found.get("packs"):
        return []
    oldest = str(found["oldest_unchecked_at"] or "")[:10] or "never"
    share, findings = f"{found['checked_share']:.0%}", found["findings"]
    reread = f"scrub     {share} of {found['packs']} packs reread in this period"
    return [f"{reread}, the rest last on {oldest}, {findings} found damaged"]


def status(context: typer.Context) -> None:
    """Say what the node is doing; exit code 1 when something stands in its way."""
    call = invocation.of(context)
    found = _document(call)
    call.output.result(found, _text(found))
    raise typer.Exit(exit_codes.FAULT if found["problems"] else exit_codes.OK)


def all_verified(found: dict[str, Any]) -> bool:
    """Tell whether nothing is pending, nor has to be sent again.

    An index that does not know everything can't say so.
    """
    whole = all(each["condition"] != "index" for each in found["problems"])
    return whole and found["pending_instances"] == 0 and not found["damaged"]


def drain(
    context: typer.Context,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="How long to wait, like `10 min`.")
    ] = "1 h",
) -> None:
    """Wait until everything that was received is verified in the bucket.

    Exit code 0 then, else 1 with what is left.
    """
    from appliance.archive.freshness import Freshness
    from appliance.archive.status import node_status
    from appliance.foundation.errors import UsageError
    from appliance.foundation.units import format_size, parse_duration_s

    call = invocation.of(context)
    try:
        end_s = time.monotonic() + parse_duration_s(timeout)
    except ValueError as fault:
        raise UsageError("drain", "--timeout", str(fault)) from fault
    with call.parts() as parts:
        freshness = Freshness(parts.layout)
        fresh = freshness.wait()
        found = node_status(call.config, parts.layout, parts.index, parts.clock, parts.condition)
        total = found["pending_instances"]
        with call.output.progress("instances", total) as advance:
            done = 0
            while not (fresh and all_verified(found)):
                if time.monotonic() > end_s:
                    break
                time.sleep(POLL_S)
                fresh = freshness.wait(POLL_S)
                found = node_status(
                    call.config, parts.layout, parts.index, parts.clock, parts.condition
                )
                left = found["pending_instances"]
                if total is not None and left is not None:
                    advance(max(0, total - left - done))
                    done = max(done, total - left)
    if not (fresh and all_verified(found)):
        left = found["pending_instances"]
        size = format_size(found["pending_bytes"] or 0)
        text = f"{left} instances, {size}, are still pending"
        if left is None:
            text = "what is still pending is not known"
        text += "".join(f"\n{each['sentence']}" for each in found["problems"])
        call.output.result(found, text)
        raise typer.Exit(exit_codes.FAULT)
    call.output.result(found, f"drained: {found['instances']} instances are verified in the bucket")
