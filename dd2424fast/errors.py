"""Errors of this library's own; all others are Python's."""


class TrainingDiverged(FloatingPointError, ValueError):
    """The loss or a gradient is not finite: the update was not applied, the parameters are those before it. Or a
    parameter is not finite, found when a checkpoint was to be saved: the file is the one before it.

    A ValueError too, which scikit-learn's estimators raise.

    Attributes
    ----------
    update : int
        Number of the update, from 0.
    report : divergence.DivergenceReport or None
        What the update's replay found: the first layer and operand that are not finite, the losses before, what to
        change. It prints. None where no update was replayed: in `find_lr`, and when a checkpoint was to be saved.
    """

    def __init__(self, message, update, report=None):
        super().__init__(message)
        self.update, self.report = update, report

    def __reduce__(self):
        return type(self), (self.args[0], self.update, self.report)
