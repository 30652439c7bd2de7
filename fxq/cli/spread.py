"""Choose some of many samples."""


def evenly_spaced(count: int, limit: int) -> list[int]:
    """Return at most ``limit`` indices of ``count``, evenly spaced.

    Not the first ones: folders and arrays are often sorted by class, and one class is no calibration set.
    """
    chosen = min(count, limit)
    return [index * count // chosen for index in range(chosen)]
