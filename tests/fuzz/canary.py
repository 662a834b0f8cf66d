"""What hostile files ask to run. If it is called, a file ran code."""

calls: list[tuple[object, ...]] = []


def ran(*what: object) -> str:
    """Note that code of a file ran."""
    calls.append(what)
    return "ran"
