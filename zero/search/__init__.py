"""Search: batched Gumbel AlphaZero over struct-of-arrays trees."""
