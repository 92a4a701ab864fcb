"""The unit files of all queues of a host, rendered in one pass."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

QUADLETS = "/etc/containers/systemd/celery-metal"
UNITS = "/etc/systemd/system"


def specifier(text: str) -> str:
    """Text for a unit file where systemd expands ``%`` specifiers but reads no quotes."""
    return text.replace("%", "%%")


def quoted(text: str) -> str:
    """One word for a list such as ``Environment=``, through Quadlet and systemd's ``ExecStart=``.

    Both strip one level of quotes; systemd expands ``%`` and ``$`` besides.

    >>> quoted('A=50% of "$HOME"')
    '"A=50%% of \\\\"$$HOME\\\\""'
    """
    for char, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        text = text.replace(char, escaped)
    return f'"{text}"'


def worker_units(plan: dict[str, Any], templates: str, **context: Any) -> dict[str, Any]:
    """Unit files and links of all queues in a host's plan.

    :param plan: what ``roles/capacity`` returned for the host.
    :param templates: the role's template directory, which mirrors the host's paths.
    :param context: what all queues share: image, app, broker_url, ...
    :returns: ``files`` (path to content) and ``links`` (path to target), two options of the
        module ``celery_units``.
    :raises jinja2.UndefinedError: when the context lacks something that a template names.
    """
    jinja = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters.update(quoted=quoted, specifier=specifier)
    container = jinja.get_template(f"{QUADLETS[1:]}/celery-@.container.j2")
    target = jinja.get_template(f"{UNITS[1:]}/celery-.target.j2")
    files, links = {}, {}
    for queue in plan["queues"]:
        unit = f"celery-{queue['unit']}"
        files[f"{QUADLETS}/{unit}@.container"] = container.render(queue=queue, **context)
        files[f"{UNITS}/{unit}.target"] = target.render(queue=queue)
        links[f"{UNITS}/celery.target.wants/{unit}.target"] = f"{UNITS}/{unit}.target"
        for number in range(1, queue["instances"] + 1):
            links[f"{QUADLETS}/{unit}@{number}.container"] = f"{unit}@.container"
    return {"files": files, "links": links}


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"celery_worker_units": worker_units}
