"""Refuses a run for the wrong destination, without hosts, or with options that do not exist.

With ``step: look`` it returns the destination that a host has on record.

It looks into each of several inventories, for Ansible merges them, and at the command line, for an
inventory must not confirm itself.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from ansible import context
from ansible.errors import AnsibleError
from ansible.inventory.manager import IGNORED, InventoryManager
from ansible.plugins.action import ActionBase
from ansible.vars.plugins import get_vars_from_inventory_sources

# Ansible takes each file in this directory for such a plugin.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "filter_plugins"))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "declared"))
import arguments as options
import destination
import external
import groups

MODULE = "celery_destination"


def files_of(source: str) -> Iterator[str]:
    """The inventories that Ansible reads for one that was given: a directory has several."""
    if not os.path.isdir(source):
        yield source
        return
    for name in sorted(os.listdir(source)):
        if not IGNORED.search(name.encode()):
            yield from files_of(os.path.join(source, name))


class ActionModule(ActionBase):  # type: ignore[misc]
    """Checks the destination of a run; with ``step: look`` returns the one on record on a host."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Refuse a run that the rules do not allow.

        ``wants`` is what the playbook does that the destination's name must confirm, ``changes``
        whether it changes hosts. Under ``--check`` nothing needs to be confirmed. ``needs`` is one
        of ``groups.DEPLOY``, ``USE``, which is the default, and ``ANY``.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = self._task.args
        if arguments.get("step") == "look":
            found = self._execute_module(module_name=MODULE, module_args={}, task_vars=task_vars)
            return {**result, **found}
        try:
            declared = self._declared(task_vars)
            wants = arguments.get("wants") or destination.insisting(
                {
                    name: self._templar.template(task_vars.get(name, ""))
                    for name in destination.INSISTING
                }
            )
            inventories = self._inventories(declared)
        except AnsibleError as error:
            said = f"the destination of this run cannot be read: {error}"
            return {**result, "failed": True, "msg": f"{said}\n  Fix: correct the variable."}
        given = self._task.get_variable_manager().extra_vars
        # destination.yml is imported by many: the command line says by which.
        names_called = {pathlib.Path(one).stem for one in context.CLIARGS.get("args", ())}
        for playbook in sorted(names_called):
            if wrong := options.problem(playbook, given, task_vars, self._read):
                return {**result, "failed": True, "msg": wrong}
        is_check = self._task.check_mode
        found = destination.problem(
            declared,
            given,
            inventories,
            "" if is_check else str(wants),
            changes=not is_check and str(arguments.get("changes", "")).lower() == "true",
        )
        # After that, for the groups of two inventories together fit to none.
        found = (declared and found) or groups.problem(
            task_vars["groups"],
            str(arguments.get("needs", groups.USE)),
            is_external=external.is_external(task_vars["hostvars"], task_vars["groups"]),
        )
        names = {name for name, _ in declared.values()}
        name = next(iter(names)) if len(names) == 1 else None
        if isinstance(name, str) and destination.NAME.fullmatch(name):
            result["destination"] = name  # the callback plugin shows it
        return {**result, "failed": True, "msg": found} if found else result

    def _read(self, value: Any) -> Any:
        try:
            return self._templar.template(value)
        except AnsibleError as error:
            raise ValueError(str(error)) from error

    def _declared(self, task_vars: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        every_group = task_vars["groups"]
        hosts = dict.fromkeys(h for group in groups.GROUPS for h in every_group.get(group, []))
        every = task_vars["hostvars"]
        names = ("deploy_destination", "deploy_protected")
        found = {
            host: tuple(self._templar.template(every[host].get(name)) for name in names)
            for host in hosts
        }
        return {host: (name, destination.switch(is_)) for host, (name, is_) in found.items()}

    def _inventories(self, declared: dict[str, tuple[Any, Any]]) -> dict[str, list[Any]]:
        """The values of ``deploy_destination`` in each inventory, where several were given."""
        given = self._task.get_variable_manager()._inventory._sources
        files = [(source, file) for source in given for file in files_of(source)]
        if len(files) < 2 or not any(name for name, _ in declared.values()):
            return {}
        return {file: self._values(source, file) for source, file in files}

    def _values(self, source: str, file: str) -> list[Any]:
        manager = InventoryManager(self._loader, sources=[file])
        found = []
        for one in (*manager.groups.values(), *manager.hosts.values()):
            beside = get_vars_from_inventory_sources(self._loader, [source], [one], "task")
            variables = {**one.vars, **beside}
            if "deploy_destination" in variables:
                found.append(variables["deploy_destination"])
        return found
