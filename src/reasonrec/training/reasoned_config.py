"""What training on questions, thoughts and answers can be told (R2Rec). Imports no torch."""

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from reasonrec.config import Config
from reasonrec.training.config import Estimator, TokenMean


class GrpoConfig(Config):
    """GRPO over written thoughts and answers.

    That RL follows SFT and learns from rewards is stated by the paper's abstract, that it is GRPO
    is known at second hand. Rewards, weights and all other values are ours.
    """

    group_size: int = Field(default=4, ge=2)
    """Rollouts per question, G."""
    temperature: PositiveFloat = 1.0
    """Of sampling, and of the log-probabilities of tokens that ratios, gradients, entropy and the
    distance from the start are made of, so that what is trained is the policy that wrote. It draws
    among all tokens."""
    max_tokens: PositiveInt = 140
    """Of a thought; then the answer marker is forced."""
    max_answer_tokens: PositiveInt = 12
    """Of an answer, its end included."""
    advantage: Estimator = "leave-one-out"
    """leave-one-out, the default, is ours: a reward less the mean of the group's others. ``grpo``
    divides by the group's spread too, which blows up small differences of groups that hardly
    differ."""
    clip_low: PositiveFloat = 0.2
    """Clipping at 0.2 either way is what GRPO is published with; R2Rec's is not known."""
    clip_high: PositiveFloat = 0.2
    num_inner_epochs: PositiveInt = 1
    """Optimiser steps on each batch of rollouts."""
    token_mean: TokenMean = "tokens"
    """What the token term is a mean over."""
    answer_weight: NonNegativeFloat = 1.0
    """Weight of the cross-entropy of the true answer after the model's own thoughts, among the
    answers that the question offers (``chooses``), else among all words. Ours; 0 is GRPO alone."""
    kl_weight: NonNegativeFloat = 0.0
    """Weight of the distance of written tokens from the model that RL started from. Published GRPO
    has one; whether R2Rec does is not known, and 0 is ours."""
    format_weight: NonNegativeFloat = 0.1
    """Reward of a thought that ends by itself, with an answer that exists."""
    closeness_weight: NonNegativeFloat = 0.6
    """Rated: reward of 1 - |answer - rating| / (highest - lowest)."""
    hit_weight: NonNegativeFloat = 0.3
    """Reward of the exact answer: rated, the rating; likes, the item in the first place."""
    reciprocal_weight: NonNegativeFloat = 0.6
    """Likes: reward of 1 / rank of the item taken."""
    pairwise_weight: NonNegativeFloat = 0.0
    """Rated: reward of expecting more of an item that was taken than of one that the user touches
    nowhere. Above 0 every question is asked of such a pair."""
