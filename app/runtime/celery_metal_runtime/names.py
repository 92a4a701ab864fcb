"""The node names of workers: one for each queue, instance and host, and no two alike.

Claims are in Redis under the node name, so two workers with one name would run each other's tasks.
`playbooks/filter_plugins/fleet.py` takes this function from here.
"""

import re


def node_name(queue: str, instance: str, host: str) -> str:
    """The name of a queue's worker; `host` is a name that no other host of the fleet has.

    Celery splits a name at @ and expands % in it. Characters that it could take for something else
    are written as their number in hexadecimal between two equals signs. So are the dash in an
    instance and the colon in a host, which would make it unclear where that part begins or ends.

    >>> node_name("emails", "1", "web1.example.org")
    'emails-1@web1.example.org'
    >>> node_name("media/thumbs", "1", "web1"), node_name("media_thumbs", "1", "web1")
    ('media=2F=thumbs-1@web1', 'media_thumbs-1@web1')
    """
    name = f"{_escaped(queue, '.:-')}-{_escaped(instance, '.:')}"
    return f"{name}@{_escaped(host, '.-')}"


def _escaped(text: str, plain: str) -> str:
    """`text` with all but letters, digits, _ and `plain` written as numbers."""
    return re.sub(rf"[^\w{plain}]", lambda found: f"={ord(found[0]):X}=", text)
