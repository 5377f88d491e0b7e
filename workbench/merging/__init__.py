"""Operations on weights after training: soups, scaled and pruned updates, fused decoding."""
