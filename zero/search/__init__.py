"""Search: batched tree search, Gumbel or PUCT, over struct-of-arrays trees."""
