"""Sizes of memory as people read them."""


def size_text(count: float | None) -> str:
    """Writes a number of bytes: 9_224_437_760 -> '8.59 GiB', 2_062_000 -> '1.97 MiB'."""
    if count is None:
        return 'more than there is'
    return f'{count / 2**30:,.2f} GiB' if count >= 2**30 else f'{count / 2**20:,.2f} MiB'
