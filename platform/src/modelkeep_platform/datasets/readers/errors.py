"""What readers say of a payload that is not as declared; shown to the owner, never logged or recorded."""

from modelkeep_platform.core.errors import UnprocessableError


class BadCellError(UnprocessableError):
    """A cell is not as declared; row and column are in the details, the value is not repeated.

    Args:
        row: counted from 1, without the header.
        column: its name.
        reason: what is wrong.
    """

    code = "bad_cell"

    def __init__(self, row: int, column: str, reason: str) -> None:
        super().__init__(
            f"row {row}, column `{column}`: {reason}; mend the row or the declared schema",
            details={"row": row, "column": column, "reason": reason},
        )
