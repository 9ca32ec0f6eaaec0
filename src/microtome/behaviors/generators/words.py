"""Word lists of the generators, written for this project."""

from __future__ import annotations

GIRLS = (
    "girl", "woman", "queen", "princess", "mother", "mom", "sister", "aunt", "lady", "daughter",
    "wife", "grandma", "Lily", "Mia", "Sara", "Anna", "Lucy", "Mary", "Emma", "Amy", "Sue", "Jane",
    "Kate", "Ella", "Molly", "Rose", "Daisy", "Alice", "Laura", "Susan", "Linda", "Helen",
)  # fmt: skip
BOYS = (
    "boy", "man", "king", "prince", "father", "dad", "brother", "uncle", "lord", "son", "husband",
    "grandpa", "Tim", "Tom", "Max", "Ben", "Jack", "Sam", "John", "Bob", "Leo", "Mark", "Paul",
    "Peter", "David", "James", "Billy", "Roger", "Frank", "Henry", "Simon", "Kevin",
)  # fmt: skip
NAMES = (
    "Mary", "John", "Anna", "Tom", "Lucy", "Mark", "Sara", "Paul", "Emma", "Jack", "Kate", "Peter",
    "Laura", "David", "Alice", "James", "Susan", "Kevin", "Helen", "Simon", "Rose", "Henry",
    "Jane", "Frank", "Linda", "Robert", "Grace", "Adam", "Martin", "Sam", "Max", "Ben", "Lily",
    "Tim", "Mia", "Leo",
)  # fmt: skip
PLACES = (
    "park",
    "store",
    "school",
    "garden",
    "beach",
    "house",
    "station",
    "market",
    "office",
    "farm",
    "lake",
    "zoo",
)
GIFTS = (
    "ball",
    "book",
    "drink",
    "ring",
    "flower",
    "letter",
    "hat",
    "cake",
    "toy",
    "box",
    "kite",
    "apple",
    "cup",
    "map",
)
SINGULARS = (
    "dog", "cat", "bird", "boy", "girl", "tree", "car", "boat", "ball", "flower", "rabbit", "bear",
    "duck", "frog", "teacher", "doctor", "farmer", "king", "teddy", "toy", "book", "bee", "pig",
    "cow", "horse", "friend", "kid", "robot", "monster", "apple", "cloud", "star", "key", "door",
    "truck", "train", "cookie", "puppy", "man", "woman", "fireman", "policeman", "mouse", "goose",
    "wife", "knife", "child", "shoe", "plate", "pie", "game", "kite", "plane", "snake", "nurse",
    "prince", "tie", "eagle", "candle", "bike", "statue", "picture",
)  # fmt: skip
IRREGULAR = {
    "man": "men", "woman": "women", "fireman": "firemen", "policeman": "policemen", "mouse": "mice",
    "goose": "geese", "wife": "wives", "knife": "knives", "child": "children",
}  # fmt: skip
"""Plurals that do not follow the rules."""

INVENTED = (
    "Zog", "Rab", "Kip", "Mun", "Pel", "Dov", "Nix", "Tob", "Lum", "Fen", "Gub", "Wim", "Bix",
    "Jev", "Sut", "Yol",
)  # fmt: skip
"""Names that tell nothing about gender."""

ATTRACTORS = (
    "house",
    "table",
    "river",
    "garden",
    "chair",
    "window",
    "road",
    "hill",
    "wall",
    "bed",
    "lake",
    "stone",
    "bench",
    "fence",
    "lamp",
    "bridge",
)
COMMON = (
    "tree", "book", "fish", "house", "ball", "door", "hand", "water", "car", "bird", "milk", "sun",
    "cake", "hat", "cup", "king", "road", "name", "value", "path", "size", "data", "file", "line",
    "text", "type", "mode", "list", "key", "index", "start", "end", "count", "level", "parent",
    "result", "item", "code", "error", "time", "test", "node", "main", "group", "state", "table",
    "field", "input", "output", "name", "block", "word", "star", "stone", "tail", "leaf", "root",
    "left", "right", "top", "red", "blue", "green", "big", "old", "new", "long", "short",
)  # fmt: skip
OBJECTS = (
    "key",
    "ball",
    "ring",
    "coin",
    "letter",
    "toy",
    "apple",
    "book",
    "pen",
    "hat",
    "card",
    "doll",
    "cup",
    "map",
    "shell",
    "spoon",
)
BOXES = (
    "box",
    "bag",
    "jar",
    "drawer",
    "basket",
    "cup",
    "bowl",
    "chest",
    "bucket",
    "bottle",
    "pocket",
    "car",
    "boat",
    "house",
    "bed",
    "tree",
)
IDENTIFIERS = (
    "name", "value", "path", "size", "data", "key", "file", "line", "text", "type", "mode", "args",
    "func", "index", "start", "end", "count", "level", "parent", "result", "items", "host", "port",
    "code", "message", "encoding", "timeout", "filename", "prefix", "default", "module", "string",
    "object", "class_name", "state", "node", "target", "source", "method", "options", "stream",
    "buffer", "loop", "lock", "handler", "config", "title", "width", "length", "number", "token",
    "user", "date", "time", "color", "format", "header", "body", "request", "response", "address",
    "process", "thread", "pattern", "group", "match", "other", "base", "context", "parser",
    "input", "output", "error", "info", "version", "flags", "limit", "offset", "stop", "step",
    "url", "root", "tree", "block", "command", "result", "callback", "delay", "event", "label",
    "field", "table", "row", "column", "word", "test",
)  # fmt: skip
FUNCTIONS = (
    "run",
    "get",
    "read",
    "write",
    "open",
    "close",
    "find",
    "parse",
    "load",
    "make",
    "check",
    "update",
    "send",
    "process",
    "handle",
    "build",
    "copy",
    "join",
)
CLASSES = (
    "Node",
    "Task",
    "Item",
    "Point",
    "Parser",
    "Client",
    "Server",
    "Worker",
    "Config",
    "Event",
    "Message",
    "Token",
    "Loader",
    "Reader",
)

EVENTS = (
    "war", "journey", "siege", "reign", "project", "voyage", "campaign", "strike", "festival",
    "conflict", "famine", "dispute", "expedition", "rebellion", "trial", "mission", "contest",
    "truce", "revolt", "study", "plague", "treaty", "alliance", "tour",
)  # fmt: skip
"""Things that last for years."""

COLORS = (
    "red", "blue", "green", "black", "white", "brown", "pink", "yellow", "orange", "purple", "gray",
    "gold", "silver", "tan", "violet", "beige", "cream", "navy", "coral", "amber", "crimson",
    "scarlet", "copper", "bronze",
)  # fmt: skip


def unique(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words without repetition, in order."""
    return tuple(dict.fromkeys(words))
