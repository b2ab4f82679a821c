"""A call-center bot: it takes an order number by voice or keys, looks the order up, answers, and hands over.

duplex serve --bot examples/callcenter_bot.py:callcenter

It talks by itself, word for word; the language model is not asked. ``test_callcenter_bot.py`` is its test file, and
``docs/bots.md`` the manual.
"""

import re
from dataclasses import dataclass

from spoken_digits import digits_in, spelled

from duplex.bots import Answer, Call, HandOverError, ToolError

NUMBER = 4
"""Digits of an order number."""
PATIENCE = 2
"""Failures in a row, and a person takes over."""

WELCOME = "Welcome to Meadow Furniture. Please say your order number, or type it and press the hash key."
NOT_HEARD = "I did not hear anything. Please say your order number, or type it and press hash."
NOT_UNDERSTOOD = "I did not get that. An order number has four digits. Please say it again."
AGAIN = "Then please tell me the number again."
ONE_MOMENT = "One moment, I am looking it up."
ANYTHING_ELSE = "Would you like to ask about another order?"
GOODBYE = "Thank you for calling Meadow Furniture. Goodbye."
PUT_THROUGH = "I am putting you through to a colleague."
NOBODY_THERE = "I am sorry, nobody is free. Please call again in a while. Goodbye."

YES = {"yes", "yeah", "yep", "right", "correct", "sure", "exactly"}
NO = {"no", "nope", "wrong", "not"}
PERSON = {"person", "human", "agent", "operator", "somebody", "someone", "colleague", "representative"}


@dataclass(frozen=True)
class Order:
    what: str
    state: str


ORDERS = {
    "4271": Order("two blue armchairs", "leaves our warehouse tomorrow"),
    "1205": Order("an oak table", "was delivered on Monday"),
    "8890": Order("a bookcase", "is waiting for its shelves"),
}


async def look_up(number: str) -> Order | None:
    """The order of that number; a database in real life."""
    return ORDERS.get(number)


class PersonNeededError(Exception):
    """The caller wants a person, or needs one. The message is said before they are put through."""


async def callcenter(call: Call) -> None:
    try:
        question = WELCOME
        while question:
            question = await one_order(call, question)
        await call.say(GOODBYE)
    except PersonNeededError as why:
        await call.say(f"{why} {PUT_THROUGH}".strip())
        try:
            await call.hand_over("sales")
        except HandOverError:
            await call.say(NOBODY_THERE)


async def one_order(call: Call, question: str) -> str:
    """Answers for one order. Returns the question that begins the next; empty if there is none."""
    failures = 0
    while True:
        number = await order_number(call, question)
        order = await looked_up(call, number)
        if order is not None:
            await call.say(f"Order {spelled(number)}, {order.what}, {order.state}.")
            return await another(call)
        failures += 1
        if failures == PATIENCE:
            raise PersonNeededError(f"There is no order {spelled(number)} either.")
        question = f"I cannot find an order {spelled(number)}. Please tell me the number again."


async def looked_up(call: Call, number: str) -> Order | None:
    await call.say(ONE_MOMENT)
    try:
        return await call.run(look_up, number)
    except ToolError as error:
        raise PersonNeededError("I am sorry, I cannot look into our orders right now.") from error


async def order_number(call: Call, question: str) -> str:
    """Four digits that the caller has confirmed, said or typed, in one go or in pieces."""
    digits, failures = "", 0
    while failures < PATIENCE:
        answer = await asked(call, question)
        while answer is not None and numbers_of(answer):
            heard = numbers_of(answer)
            digits = heard if len(digits + heard) > NUMBER else digits + heard
            if len(digits) > NUMBER:
                break
            if len(digits) < NUMBER:
                answer = await asked(call, f"{spelled(digits)}, and then?")
                continue
            answer = await asked(call, f"That is order {spelled(digits)}. Is that right?", max_keys=1)
            if says(answer, YES, "1") and not says(answer, NO, "2"):
                return digits
            digits = ""
            if answer is None or answer.keys:
                break
            # Other digits, in words, are a correction.
        digits, failures = "", failures + 1
        question = NOT_HEARD if answer is None else AGAIN if says(answer, NO, "2") else NOT_UNDERSTOOD
    raise PersonNeededError("")


async def another(call: Call) -> str:
    """The question to begin with anew, if the caller has another order."""
    answer = await asked(call, ANYTHING_ELSE, max_keys=1)
    return "What is the number of that order?" if says(answer, YES, "1") and not says(answer, NO, "2") else ""


async def asked(call: Call, question: str, max_keys: int = 8) -> Answer | None:
    """Raises ``PersonNeededError`` if the caller asks for one, in words or with the key 0."""
    answer = await call.ask(question, max_keys=max_keys)
    if says(answer, PERSON, "0"):
        raise PersonNeededError("")
    return answer


def says(answer: Answer | None, words: set[str], key: str) -> bool:
    return answer is not None and (answer.keys == key or bool(words & set(re.findall("[a-z]+", answer.text.lower()))))


def numbers_of(answer: Answer) -> str:
    return "".join(filter(str.isdigit, answer.keys)) or digits_in(answer.text)
