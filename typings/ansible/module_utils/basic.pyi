from collections.abc import Mapping
from typing import Any, NoReturn

class AnsibleModule:
    _name: str
    check_mode: bool
    params: dict[str, Any]  # the argument_spec, which is data, decides on the types
    tmpdir: str
    def __init__(
        self,
        argument_spec: Mapping[str, Mapping[str, object]],
        *,
        supports_check_mode: bool,
        no_log: bool = False,
    ) -> None: ...
    def exit_json(self, *, changed: bool, **result: object) -> NoReturn: ...
    def fail_json(self, msg: str, **result: object) -> NoReturn: ...
    def warn(self, warning: str) -> None: ...
