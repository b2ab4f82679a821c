"""A bot to test: it reads the menu, and when it was interrupted it goes on with what was not heard.

This is its mind, as a function: what was said and heard so far, and the guest's words now, to what to say. Of a reply
that was cut off, ``history`` has the words the guest heard, and no others.
"""

from collections.abc import Sequence

from duplex.conversation import Message, Role

MENU = "Today we have tomato soup with basil, fish pie with peas, and an apple cake with cream."


def answer(history: Sequence[Message], said: str) -> str:
    if "go on" not in said:
        return MENU if "menu" in said or not said else "I can read you the menu."
    told = [message for message in history if message.role is Role.ASSISTANT]
    if not told or not told[-1].cut_off:
        return "That was all of it."
    rest = MENU.split()[len(told[-1].text.split()) :]
    return " ".join(["As I said,", *rest])
