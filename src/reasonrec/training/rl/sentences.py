"""What each sentence of a thought earns: a process reward, ours.

A thought o with sentences and look-ups s_1 .. s_K is read after each of them, as if it ended there:
the gain of s_k is ``log p(v+ | x, s_1 .. s_k) - log p(v+ | x, s_1 .. s_{k-1})``, and the gains of a
thought sum to what the whole of it adds to the empty thought. The advantage of s_k is its gain less
the mean gain of the k-th sentences of its group, and is that of its written tokens.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reasonrec.models.anytime import Cuts, cuts_of, scores_along
from reasonrec.models.branches import Batch
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.training.rl.loss import log_prob_of_targets

MOST_SCORES = 2**26
"""Scores that are held at a time, in entries: a quarter of a GiB."""


@dataclass
class Sentences:
    """The sentences of P x G thoughts, up to K each, and what they add."""

    gains_P_G_K: Tensor
    """In nats; 0 where there is no sentence."""
    exists_P_G_K: Tensor
    token_advantages: Tensor
    """(P, G, S), of the sentence that each token belongs to; 0 for markers and what follows."""

    def statistics(self) -> dict[str, float]:
        """Return what there is to log."""
        gains = self.gains_P_G_K[self.exists_P_G_K]
        return {
            "rl/sentence_gain": gains.mean().item() if gains.numel() else 0.0,
            "rl/frac_sentences_help": (gains > 0).float().mean().item() if gains.numel() else 0.0,
            "rl/sentences": self.exists_P_G_K.sum(-1).float().mean().item(),
        }


def measure_sentences(
    model: ReasoningRecommender, batch: Batch, target_P: Tensor, masked_P_N: Tensor
) -> Sentences:
    """Return what each sentence of the rollouts adds, under the model as it is now."""
    assert batch.branch_ids is not None
    cuts = cuts_of(batch, model.writer)
    P, G, K = cuts.at.shape
    size = max(1, MOST_SCORES // (G * K * model.num_items))
    parts = []
    for start in range(0, P, size):
        rows = slice(start, start + size)
        scores = scores_along(model, _rows(batch, rows), Cuts(cuts.at[rows], cuts.num_found[rows]))
        flat = scores.flatten(1, 2)
        logp = log_prob_of_targets(flat, target_P[rows], masked_P_N[rows], over="catalogue")
        # of a target that may not be recommended no sentence has a gain
        logp = logp.masked_fill(masked_P_N[rows].gather(1, target_P[rows, None]), 0.0)
        parts.append(logp.unflatten(1, (G, K)))
    gains, exists = sentence_gains(torch.cat(parts), cuts.exists)
    of_sentence = cuts.sentence_of_tokens(batch.branch_ids.shape[-1])
    return Sentences(gains, exists, of_tokens(sentence_advantages(gains, exists), of_sentence))


def sentence_gains(logp_P_G_K: Tensor, is_cut_P_G_K: Tensor) -> tuple[Tensor, Tensor]:
    """Return gains (P, G, K - 1) in nats and which of them exist, from K beginnings of thoughts.

    Args:
        logp_P_G_K: Target's log-probability after each beginning, the empty one first.
    """
    exists = is_cut_P_G_K[..., 1:]
    return logp_P_G_K.diff(dim=-1).where(exists, 0.0), exists


def sentence_advantages(gains_P_G_K: Tensor, exists_P_G_K: Tensor) -> Tensor:
    """Return gains less the mean gain of the group at the same place, (P, G, K).

    A sentence that no other of its group can be compared with has none. The place is known before
    the sentence is written, so that a mean over it favours no sentence.
    """
    count = exists_P_G_K.sum(1, keepdim=True)
    mean = (gains_P_G_K * exists_P_G_K).sum(1, keepdim=True) / count.clamp(min=1)
    return (gains_P_G_K - mean).where(exists_P_G_K & (count > 1), 0.0)


def of_tokens(advantages_P_G_K: Tensor, sentence_P_G_S: Tensor) -> Tensor:
    """Return each token's share in its sentence's advantage, all of it; 0 outside. (P, G, S)."""
    if advantages_P_G_K.shape[-1] == 0:
        return torch.zeros_like(sentence_P_G_S, dtype=torch.float32)
    each = advantages_P_G_K.gather(-1, sentence_P_G_S.clamp(min=0))
    return each.where(sentence_P_G_S >= 0, 0.0)


def _rows(batch: Batch, rows: slice) -> Batch:
    return replace(batch, **{k: v[rows] for k, v in vars(batch).items() if v is not None})
