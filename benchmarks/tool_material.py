"""Written utterances for tools: what should be called, with which arguments. Tuned on one half, measured on the other.

The held-out half has the tools of the tuning half with other utterances, and tools that were not tuned on at all.
They are written as a listener would write them down. ``None``: nothing should be called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from duplex.agent import Tool


def _tool(name: str, description: str, **properties: dict[str, Any]) -> Tool:
    required = [key for key, schema in properties.items() if not schema.pop("optional", False)]
    return Tool(name, description, {"type": "object", "properties": properties, "required": required})


@dataclass(frozen=True, slots=True)
class Said:
    """``missing``: the tool is meant, and what it needs was not said, so it should be asked for."""

    text: str
    tool: str | None = None
    arguments: dict[str, Any] | None = None
    missing: bool = False


Material = tuple[tuple[tuple[Tool, ...], tuple[Said, ...]], ...]

OFFICE = (
    _tool(
        "get_time",
        "Tells the current time of day, how late it is.",
    ),
    _tool(
        "lookup_order",
        "Looks up the status of an order.",
        number={"type": "string", "description": "the order number"},
    ),
    _tool(
        "set_timer",
        "Sets a timer that rings after some minutes.",
        minutes={"type": "integer", "description": "how many minutes"},
    ),
)
HOME = (
    _tool(
        "get_weather",
        "Tells the weather in a city: rain, sun, snow, wind, how warm or cold it is.",
        city={"type": "string", "description": "the name of the city"},
    ),
    _tool(
        "switch_light",
        "Turns the light in a room on or off.",
        room={"type": "string", "enum": ["kitchen", "bedroom", "garage"]},
        state={"type": "string", "enum": ["on", "off"]},
    ),
    _tool(
        "hang_up",
        "Ends the call when the caller says goodbye or bye.",
    ),
)
RESTAURANT = (
    _tool(
        "get_balance",
        "Tells how much money is on the account.",
    ),
    _tool(
        "book_table",
        "Books a table at the restaurant.",
        people={"type": "integer", "description": "the number of guests"},
        day={"type": "string", "enum": ["today", "tomorrow", "friday", "saturday"], "description": "the day"},
    ),
    _tool(
        "transfer_call",
        "Connects the caller to a department.",
        department={"type": "string", "enum": ["sales", "support", "billing"]},
    ),
)
OTHERS = (
    _tool(
        "play_music",
        "Plays music.",
        genre={"type": "string", "description": "the kind of music", "optional": True},
    ),
    _tool(
        "convert_money",
        "Converts euros to dollars.",
        amount={"type": "number", "description": "the amount in euros"},
    ),
)

TUNING: Material = (
    (
        OFFICE,
        (
            Said("What time is it?", "get_time", {}),
            Said("Can you tell me the time, please?", "get_time", {}),
            Said("Do you know how late it is?", "get_time", {}),
            Said("I need to know the time.", "get_time", {}),
            Said("Where is my order 4711?", "lookup_order", {"number": "4711"}),
            Said("Can you check on order number 82 for me?", "lookup_order", {"number": "82"}),
            Said("I ordered something, the number is 30577.", "lookup_order", {"number": "30577"}),
            Said("Has order one two three four been shipped?", "lookup_order", {"number": "1234"}),
            Said("What's the status of my order? It's 55 12.", "lookup_order", {"number": "5512"}),
            Said("Set a timer for five minutes.", "set_timer", {"minutes": 5}),
            Said("Please start a 10 minute timer.", "set_timer", {"minutes": 10}),
            Said("Remind me in twenty five minutes.", "set_timer", {"minutes": 25}),
            Said("Wake me up in 30 minutes.", "set_timer", {"minutes": 30}),
            Said("Hello!"),
            Said("How are you today?"),
            Said("What is the capital of France?"),
            Said("Tell me a joke."),
            Said("Who wrote Hamlet?"),
            Said("I like the sea."),
            Said("Thank you very much."),
            Said("How many minutes are in an hour?"),
            Said("What is two plus two?"),
            Said("My name is Oliver."),
            Said("I had a long day at work."),
            Said("What can you do?"),
            Said("Why is the sky blue?"),
            Said("I had a good time yesterday."),
            Said("It is time to go home."),
            Said("In order to win you have to train."),
            Said("Can I order a pizza?"),
            Said("I ordered a book last week."),
            Said("What does a timer do?"),
            Said("Five minutes is not a long time."),
            Said("What is the status of women in history?"),
            Said("Could you find order 5 for me?", "lookup_order", {"number": "5"}),
            Said("Order number 99871, please.", "lookup_order", {"number": "99871"}),
            Said("Timer, 12 minutes.", "set_timer", {"minutes": 12}),
            Said("Hey, what's the current time?", "get_time", {}),
            Said("I would like to know about order 66.", "lookup_order", {"number": "66"}),
            Said("Once upon a time there was a king."),
            Said("Let it ring in 7 minutes.", "set_timer", {"minutes": 7}),
            Said("What is your favourite number?"),
            Said("I am late."),
            Said("Where is my order?", "lookup_order", missing=True),
            Said("Please set a timer.", "set_timer", missing=True),
            Said("Can you look up an order for me?", "lookup_order", missing=True),
        ),
    ),
    (
        HOME,
        (
            Said("What's the weather like in Paris?", "get_weather", {"city": "Paris"}),
            Said("Is it raining in London?", "get_weather", {"city": "London"}),
            Said("How warm is it in Madrid today?", "get_weather", {"city": "Madrid"}),
            Said("Do I need an umbrella in Oslo?", "get_weather", {"city": "Oslo"}),
            Said("Turn on the light in the kitchen.", "switch_light", {"room": "kitchen", "state": "on"}),
            Said("Please switch the bedroom light off.", "switch_light", {"room": "bedroom", "state": "off"}),
            Said("Lights off in the garage, please.", "switch_light", {"room": "garage", "state": "off"}),
            Said(
                "It's too dark in the kitchen, turn the light on.", "switch_light", {"room": "kitchen", "state": "on"}
            ),
            Said("Goodbye.", "hang_up", {}),
            Said("That's all, bye bye.", "hang_up", {}),
            Said("Okay, goodbye then!", "hang_up", {}),
            Said("Good morning."),
            Said("What is the capital of Spain?"),
            Said("How do you make tea?"),
            Said("Tell me something about Paris."),
            Said("I love London."),
            Said("Who are you?"),
            Said("What is ten times ten?"),
            Said("I am cooking in the kitchen."),
            Said("Do you like music?"),
            Said("Thanks, that was helpful."),
            Said("Singing in the rain is a nice film."),
            Said("I was in Rome when the weather was bad."),
            Said("Why is snow white?"),
            Said("What is the weather made of?"),
            Said("Will there be rain in Berlin?", "get_weather", {"city": "Berlin"}),
            Said("Is it cold in Vienna?", "get_weather", {"city": "Vienna"}),
            Said("The light in the bedroom is broken."),
            Said("How fast is light?"),
            Said("My kitchen is very small."),
            Said("Can you turn the garage light on?", "switch_light", {"room": "garage", "state": "on"}),
            Said("Bedroom light on.", "switch_light", {"room": "bedroom", "state": "on"}),
            Said("Give me a call tomorrow."),
            Said("How do you say goodbye in French?"),
            Said("Bye!", "hang_up", {}),
            Said("See you, bye.", "hang_up", {}),
            Said("What's the weather like?", "get_weather", missing=True),
            Said("Turn the light off, please.", "switch_light", missing=True),
        ),
    ),
)

HELD_OUT: Material = (
    (
        OFFICE,
        (
            Said("Could you say what time we have?", "get_time", {}),
            Said("What's the time now?", "get_time", {}),
            Said("Tell me the time.", "get_time", {}),
            Said("I'm calling about order 9034.", "lookup_order", {"number": "9034"}),
            Said("Where's my package? The order number is 18.", "lookup_order", {"number": "18"}),
            Said("Please look up order seven seven one.", "lookup_order", {"number": "771"}),
            Said("When will order 60021 arrive?", "lookup_order", {"number": "60021"}),
            Said("Start a timer for fifteen minutes.", "set_timer", {"minutes": 15}),
            Said("Can you set a timer for 3 minutes?", "set_timer", {"minutes": 3}),
            Said("Let me know when forty minutes are over.", "set_timer", {"minutes": 40}),
            Said("Hi there."),
            Said("What's the capital of Italy?"),
            Said("How old are you?"),
            Said("I don't like Mondays."),
            Said("What colour is the sun?"),
            Said("That is a good idea."),
            Said("Can you sing a song?"),
            Said("How many legs does a spider have?"),
            Said("Time flies."),
            Said("How late is it?", "get_time", {}),
            Said("What time do people eat dinner in Spain?"),
            Said("I want to order flowers."),
            Said("Any news on order 3301?", "lookup_order", {"number": "3301"}),
            Said("Is order 12 on its way?", "lookup_order", {"number": "12"}),
            Said("Please check order eight zero two.", "lookup_order", {"number": "802"}),
            Said("Give me a timer of 20 minutes.", "set_timer", {"minutes": 20}),
            Said("A minute has sixty seconds."),
            Said("Put the soldiers in order."),
            Said("What's your phone number?"),
            Said("Do you have the time?", "get_time", {}),
            Said("Last time you were wrong."),
            Said("I have a question about my order.", "lookup_order", missing=True),
            Said("Can you set a timer for me?", "set_timer", missing=True),
            Said("What's the status of my order?", "lookup_order", missing=True),
        ),
    ),
    (
        RESTAURANT,
        (
            Said("How much money do I have?", "get_balance", {}),
            Said("What is my balance?", "get_balance", {}),
            Said("Check my account, please.", "get_balance", {}),
            Said("I'd like a table for four tomorrow.", "book_table", {"people": 4, "day": "tomorrow"}),
            Said("Book a table for two people on Friday.", "book_table", {"people": 2, "day": "friday"}),
            Said(
                "Can we come on Saturday? We are six people, we need a table.",
                "book_table",
                {"people": 6, "day": "saturday"},
            ),
            Said("Reserve a table for 3 today.", "book_table", {"people": 3, "day": "today"}),
            Said("I want to talk to somebody in sales.", "transfer_call", {"department": "sales"}),
            Said("Put me through to support.", "transfer_call", {"department": "support"}),
            Said("Can I speak with billing, please?", "transfer_call", {"department": "billing"}),
            Said("Hello, who is this?"),
            Said("What kind of food do you have?"),
            Said("I am very happy today."),
            Said("What is the largest ocean?"),
            Said("Tell me about the moon."),
            Said("Thanks a lot."),
            Said("My dog is called Max."),
            Said("How do I boil an egg?"),
            Said("Life is about balance."),
            Said("How is my balance doing?", "get_balance", {}),
            Said("The table is made of wood."),
            Said(
                "We are 5 people and want to come tomorrow, is there a table?",
                "book_table",
                {"people": 5, "day": "tomorrow"},
            ),
            Said("Who supports you?"),
            Said("Connect me to the billing department.", "transfer_call", {"department": "billing"}),
            Said("Money is not everything."),
            Said("Are sales going well?"),
            Said("What day is tomorrow?"),
            Said("I need help from support.", "transfer_call", {"department": "support"}),
            Said("I want to book a table.", "book_table", missing=True),
        ),
    ),
    (
        OTHERS,
        (
            Said("Play some jazz.", "play_music", {"genre": "jazz"}),
            Said("I want to hear rock music.", "play_music", {"genre": "rock"}),
            Said("Put on some music.", "play_music", {}),
            Said("How many dollars are 50 euros?", "convert_money", {"amount": 50}),
            Said("Convert twenty euros to dollars.", "convert_money", {"amount": 20}),
            Said("What is 12.50 euros in dollars?", "convert_money", {"amount": 12.5}),
            Said("Good evening."),
            Said("Who invented the telephone?"),
            Said("I bought a guitar."),
            Said("How many days has a week?"),
            Said("Are you a robot?"),
            Said("It is cold outside."),
            Said("Can you convert euros for me?", "convert_money", missing=True),
        ),
    ),
    (
        HOME,
        (
            Said("How's the weather in Lisbon?", "get_weather", {"city": "Lisbon"}),
            Said("Is there snow in Moscow?", "get_weather", {"city": "Moscow"}),
            Said("I don't like rain."),
            Said("What makes the wind blow?"),
            Said("Switch the light on in the garage.", "switch_light", {"room": "garage", "state": "on"}),
            Said("Kitchen light off, please.", "switch_light", {"room": "kitchen", "state": "off"}),
            Said("A light lunch is best."),
            Said("I sleep in the bedroom."),
            Said("Goodbye and thanks.", "hang_up", {}),
            Said("What do you call a young dog?"),
            Said("Tell me the weather for Dublin.", "get_weather", {"city": "Dublin"}),
            Said("The sun is a star."),
            Said("How is the weather?", "get_weather", missing=True),
            Said("Switch on the light.", "switch_light", missing=True),
        ),
    ),
)

# What a tool answered to what was said, and what must then be in the reply.
Answered = tuple[tuple[str, str, tuple[str, ...]], ...]
ANSWERS_TUNING: Answered = (
    ("What time is it?", '{"time": "14:05"}', ("14:05",)),
    ("Where is my order 4711?", '{"status": "shipped", "arrives": "Tuesday"}', ("shipped", "Tuesday")),
    ("Set a timer for five minutes.", '{"ok": true, "rings_at": "9:20"}', ("9:20",)),
    ("What's the weather like in Paris?", '{"weather": "light rain", "temperature": 12}', ("rain", "12")),
    ("Turn on the light in the kitchen.", '{"state": "on"}', ("on",)),
    ("How much money do I have?", "You have 215 dollars.", ("215",)),
    ("Has order 82 been shipped?", '{"status": "still being packed"}', ("packed",)),
    ("Who is on call tonight?", '{"name": "Doctor Weber", "phone": "555 0199"}', ("Weber", "555 0199")),
)
ANSWERS_HELD_OUT: Answered = (
    ("Could you say what time we have?", "21:40", ("21:40",)),
    ("I'm calling about order 9034.", '{"status": "delivered", "date": "May 3"}', ("delivered", "May 3")),
    ("Is there snow in Moscow?", '{"weather": "sunny", "temperature": -7}', ("sunny", "7")),
    ("Book a table for two people on Friday.", '{"booked": true, "time": "19:30"}', ("19:30",)),
    ("How many dollars are 50 euros?", '{"dollars": 54.2}', ("54.2",)),
    ("Put me through to support.", '{"waiting_minutes": 6}', ("6",)),
    ("When does the next train leave?", '{"leaves": "8:15", "platform": 4}', ("8:15", "4")),
    ("Please look up order 771.", '{"error": "no such order"}', ("no",)),
    ("What is my balance?", '{"balance": 1320, "currency": "dollars"}', ("1320",)),
    ("When are you open on Sunday?", '{"opens": "10:00", "closes": "16:00"}', ("10:00", "16:00")),
    ("Where is my package?", '{"place": "the post office in Leeds"}', ("Leeds",)),
    ("Is the blue jacket in stock?", '{"in_stock": 3, "size": "medium"}', ("3", "medium")),
)
