"""Dead letters: what one has in its headers, and in which list its failure waits to be stored."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any

from kombu.utils.json import dumps

from celery_metal_runtime.messages import LONGEST_NAME, crashes_of, parse

# Dead letters of which those who wait for the result do not know yet.
UNTOLD = "celery-metal.untold:"
REASON = "celery_metal_reason"
UNKNOWN = "the app does not define it"
# When, where and after how many crashes it became a dead letter, for `playbooks/dead.yml`, and the
# priority of the list that it goes back to.
DEAD = "celery_metal_dead"
# How often a task was running when its worker or its process died.
CRASHES = "celery_metal_crashes"
# Bytes at both ends of a message that cannot be read in which its headers are looked for, and how
# often: each place is read from there on.
LONGEST_HEADERS, MOST_HEADERS = 65536, 3
HEADERS = re.compile(r'"headers"\s*:\s*(?=\{)')
CORRELATION = re.compile(rf'"correlation_id"\s*:\s*"([^"\\]{{1,{LONGEST_NAME}}})"')


def noted(item: bytes, reason: str, note: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    """The message with the reason and a note in its headers, where it has headers."""
    try:
        message = parse(item)
        headers = message["headers"]
        headers[REASON] = reason
        # Sent back, it begins anew.
        headers[DEAD] = {**note(message), "crashes": crashes_of(headers.pop(CRASHES, None))}
        kept: bytes = dumps(message).encode()
        return kept
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is kept as it is
        return item


def stub(item: bytes, reason: str) -> bytes:
    """A message that has no more than the ID of one which cannot be read; empty where none is seen.

    What is large is in its body, mostly: Celery's headers are behind it, those of others before.
    """
    for part in (item[-LONGEST_HEADERS:], item[:LONGEST_HEADERS]):
        if number := _id_in(part.decode(errors="replace")):
            headers = {"id": number, REASON: reason}
            return json.dumps({"headers": headers, "properties": {}}).encode()
    return b""


def _id_in(text: str) -> str:
    for found in islice(HEADERS.finditer(text), MOST_HEADERS):
        with suppress(ValueError, RecursionError):
            number = json.JSONDecoder().raw_decode(text, found.end())[0].get("id")
            if isinstance(number, str) and 0 < len(number) <= LONGEST_NAME:
                return number
    # Celery's, which is the ID.
    correlated = CORRELATION.search(text)
    return correlated[1] if correlated else ""
