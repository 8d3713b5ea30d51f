"""Single-head attention whose longer side is never projected."""


def cheapest_fold(
    rows: int, keys: int, *, inputs_q: int, inputs_kv: int, qk: int, v: int, output: int
) -> str | None:
    """Which side of a single-head attention need not be projected at all.

    Scores are bilinear in the two inputs, and averaging commutes with a projection:

        (Xq Wq) (Xkv Wk)^T = (Xq Wq Wk^T) Xkv^T = Xq (Xkv Wk Wq^T)^T
        A (Xkv Wv) Wo      = (A Xkv) Wv Wo      = A (Xkv Wv Wo)

    So the projections of the long side can be applied to the short one instead: with 512 latents
    and 50,176 inputs of 261 channels a cross-attend takes 28 G instead of 41 G operations, and
    reads one array of that length where it would write and read three.

    Args:
      rows: T.
      keys: S.
      inputs_q: Channels of the inputs that queries are made of.
      inputs_kv: Channels of the inputs that keys and values are made of.
      qk: Channels of queries and keys.
      v: Channels of values.
      output: Channels of the output.

    Returns:
      What takes the least arithmetic: 'keys' (keys and values are the inputs themselves, the
      middle column), 'queries' (queries are the inputs themselves and values the outputs, the
      right one), or None (nothing is folded, the left one).
    """
    if not (isinstance(rows, int) and isinstance(keys, int)):  # sizes of an exported program
        return None
    around_rows = rows * (inputs_q * qk + v * output)
    around_keys = keys * inputs_kv * (qk + v)
    products = {  # multiplications
        None: around_rows + around_keys + rows * keys * (qk + v),
        'keys': around_rows + rows * inputs_kv * (qk + v) + rows * keys * 2 * inputs_kv,
        'queries': around_keys
        + keys * (qk * inputs_q + v * output)
        + rows * keys * (inputs_q + output),
    }
    return min(products, key=products.get)
