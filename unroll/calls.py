"""Names with arguments, written as a call: `taylor(order=2)`, `random(fraction=0.01)`.

Configs and the command line name methods, models, data sets and forget sets in this one form. Only
literals are read; nothing is evaluated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from unroll.errors import InputError

# The name is matched apart from the arguments, since `class(label=3)` is no Python expression.
_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*", re.DOTALL)


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Reads a name, or a name with keyword arguments that are literals.

    Raises:
      InputError: if the text has another form.

    >>> parse_call("taylor(order=2)")
    ('taylor', {'order': 2})
    >>> parse_call("original")
    ('original', {})
    """
    match = _CALL.fullmatch(text)
    try:
        if match is None:
            raise ValueError("neither a name nor a call")
        node = ast.parse(f"_({match[2] or ''})", mode="eval").body
        if node.args or any(word.arg is None for word in node.keywords):
            raise ValueError("arguments need names")
        return match[1], {word.arg: ast.literal_eval(word.value) for word in node.keywords}
    except (SyntaxError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"cannot read {text!r} ({reason}); write a name or a call such as taylor(order=2)"
        ) from None


def format_call(name: str, arguments: Mapping[str, Any]) -> str:
    """The inverse of `parse_call`, arguments in alphabetical order.

    >>> format_call("taylor", {"order": 2})
    'taylor(order=2)'
    """
    inside = ", ".join(f"{key}={value!r}" for key, value in sorted(arguments.items()))
    return f"{name}({inside})" if inside else name
