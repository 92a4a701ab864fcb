#!/usr/bin/python
"""The destination that a host was deployed for."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_destination
short_description: Report the destination that a host was deployed for
description:
  - Reads what C(site.yml) has recorded on the host; changes nothing.
author: celery-metal
"""

EXAMPLES = r"""
- name: Look for which destination the host was deployed
  celery_destination:
    step: look
"""

RETURN = r"""
destination: {description: Its name; empty where none is on record, type: str, returned: always}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_destinations import recorded_destination


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, destination=recorded_destination())


if __name__ == "__main__":
    main()
