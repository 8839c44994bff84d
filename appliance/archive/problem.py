"""What stands in the way, named: shown by status until it is gone."""


class Problem:
    """A condition's constant name, a sentence on it, and what an operator can do."""

    def __init__(self, condition: str, sentence: str, hint: str) -> None:
        self.condition = condition
        self.sentence = sentence
        self.hint = hint

    def document(self) -> dict[str, str]:
        """Return the problem as status shows it."""
        return {"condition": self.condition, "sentence": self.sentence, "hint": self.hint}
