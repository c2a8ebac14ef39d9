"""What more than one role needs: games, networks, search, trajectories, the wire codec and the experiment config."""
