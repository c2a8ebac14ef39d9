"""The rules of Connect Four once more, over lists of columns."""

WIDTH, HEIGHT = 7, 6
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


class NaiveConnectFour:
    """One game; `columns` hold the players' numbers from the bottom up."""

    def __init__(self) -> None:
        self.columns: list[list[int]] = [[] for _ in range(WIDTH)]
        self.mover = 0
        self.winner: int | None = None

    @property
    def over(self) -> bool:
        """Whether somebody has won or the board is full."""
        return self.winner is not None or sum(map(len, self.columns)) == WIDTH * HEIGHT

    def legal(self) -> list[int]:
        """The columns that take a stone."""
        return [] if self.over else [number for number, column in enumerate(self.columns) if len(column) < HEIGHT]

    def play(self, column: int) -> float:
        """The reward to the mover."""
        self.columns[column].append(self.mover)
        if any(self._line_length(column, direction) >= 4 for direction in DIRECTIONS):
            self.winner = self.mover
        self.mover = 1 - self.mover
        return float(self.winner is not None)

    def cell(self, column: int, row: int) -> int | None:
        """Whose stone lies there, rows from the bottom."""
        inside = 0 <= column < WIDTH and 0 <= row < len(self.columns[column])
        return self.columns[column][row] if inside else None

    def _line_length(self, column: int, direction: tuple[int, int]) -> int:
        """How many stones of one colour run through the top stone of a column."""
        row, length = len(self.columns[column]) - 1, 1
        for sign in (1, -1):
            distance = sign
            while self.cell(column + distance * direction[0], row + distance * direction[1]) == self.mover:
                length, distance = length + 1, distance + sign
        return length
