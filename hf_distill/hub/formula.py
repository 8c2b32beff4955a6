"""The objective as a formula that the Hub typesets."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_DIVERGENCES = {
    "forward_kl": r"\mathrm{KL}(p \,\|\, q)",
    "reverse_kl": r"\mathrm{KL}(q \,\|\, p)",
    "jeffreys": r"\mathrm{J}(p, q)",
    "jensen_shannon": r"\mathrm{JS}(p, q)",
    "total_variation": r"\mathrm{TV}(p, q)",
    "soft_cross_entropy": r"\mathrm{CE}(p, q)",
}
"""Divergences between the probabilities of teacher ``p`` and student ``q`` at one temperature."""
_OTHERS = {"hard_labels": r"\mathrm{CE}(y, q)", "logit_mse": r"\lVert z_q - z_p \rVert^2"}
_SYMBOLS = {
    "p": "*p*: the teacher's probabilities",
    "q": "*q*: the student's probabilities",
    "y": "*y*: the labels",
    "T": "*T*: the temperature of both softmaxes",
    "z": "*z*: the logits of teacher (index p) and student (q)",
    "h": "*h*: hidden states of aligned layers of teacher (index p) and student (q)",
    "theta": "*θ*: the student's weights",
}


def latex(objective: Sequence[Mapping[str, Any]]) -> str:
    """The weighted sum of an objective in LaTeX, temperatures and weights as numbers.

    Args:
        objective: Its parts, as `Sum.describe` gives them: ``name``, ``weight``, ``settings``.

    >>> latex([{"name": "forward_kl", "weight": 0.7, "settings": {"temperature": 2.0}}])
    '\\\\mathcal{L} = 0.7 \\\\cdot 2^2\\\\, \\\\mathrm{KL}(p_{T=2} \\\\,\\\\|\\\\, q_{T=2})'
    """
    return r"\mathcal{L} = " + " + ".join(_part(term) for term in objective)


def legend(objective: Sequence[Mapping[str, Any]]) -> str:
    """Explanation of the symbols that occur in the formula."""
    text = latex(objective)
    plain = re.sub(r"\\(?:mathrm|mathcal)\{[^}]*\}|_[a-z]", "", text)
    found = [name for name in "pqyTzh" if re.search(rf"(?<![a-zA-Z\\]){name}(?![a-zA-Z])", plain)]
    found += ["theta"] if r"\theta" in text else []
    return "; ".join(_SYMBOLS[name] for name in found)


def _part(term: Mapping[str, Any]) -> str:
    name, settings = term["name"], term.get("settings") or {}
    factors = [_number(term.get("weight", 1.0), name)]
    temperature = settings.get("temperature", 1.0)
    if name in _DIVERGENCES:
        symbol = _DIVERGENCES[name]
        if temperature != 1:
            at = _number(temperature, "T") if isinstance(temperature, int | float) else "T"
            symbol = re.sub(r"\b([pq])\b", rf"\1_{{T={at}}}" if at != "T" else r"\1_T", symbol)
            factors += [rf"{at}^2"] if settings.get("t_squared", True) else []
    elif name == "hidden_states":
        cosine = settings.get("distance") == "cosine"
        symbol = r"\bigl(1 - \cos(h_q, h_p)\bigr)" if cosine else r"\mathrm{MSE}(h_q, h_p)"
    elif name == "weight_decay":
        start = r" - \theta_0" if settings.get("target") == "init" else ""
        symbol = rf"\lVert \theta{start} \rVert^2"
        factors.append(_number(settings.get("strength", 1.0), name))
    else:
        symbol = _OTHERS.get(name, rf"\mathcal{{L}}_\mathrm{{{_plain(name)}}}")
    product = r" \cdot ".join(factor for factor in factors if factor != "1")
    return rf"{product}\, {symbol}" if product else symbol


def _number(value: Any, name: str) -> str:
    """A number in short form; a symbol for a schedule or a share."""
    if not isinstance(value, int | float):
        return rf"w_\mathrm{{{_plain(name)}}}"
    mantissa, _, power = f"{value:g}".partition("e")
    if not power:
        return mantissa
    return (rf"{mantissa} \cdot " if mantissa != "1" else "") + f"10^{{{int(power)}}}"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", r"\\,", name).strip("\\,") or "term"
