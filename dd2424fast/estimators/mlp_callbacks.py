"""Callbacks by scikit-learn's protocol, which it has from 1.9 on; before, there are none to call."""

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:
        """Stands in for scikit-learn's."""

        def _init_callback_context(self, **_):
            return None

    def with_callbacks(method):
        return method


__all__ = ["CallbackSupportMixin", "Listener", "with_callbacks"]


class Listener:
    """Tells an estimator's callbacks where its training stands: a task for the fit, and one for each epoch in it.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
    epochs : int
    X, y : array
        The rows that it trains on, as the user gave them.
    sample_weight : ndarray or None
    """

    def __init__(self, estimator, epochs, X, y, sample_weight):
        self.estimator = estimator
        self.data = {"X": X, "y": y}
        if sample_weight is not None:
            self.data["metadata"] = {"sample_weight": sample_weight}
        self.fit = estimator._init_callback_context(max_subtasks=epochs)
        self.epoch = None
        self.hears = bool(getattr(estimator, "_skl_callbacks", None))
        if self.hears:
            self.fit.call_on_fit_task_begin(estimator=estimator, **self.data)

    def begin_epoch(self):
        if self.hears:
            self.epoch = self.fit.subcontext(task_name="epoch")
            self.epoch.call_on_fit_task_begin(estimator=self.estimator, **self.data)

    def end_epoch(self):
        """Returns whether a callback asks for the end."""
        if not self.hears:
            return False
        epoch, self.epoch = self.epoch, None
        return epoch.call_on_fit_task_end(
            estimator=self.estimator, reconstruction_attributes=self._as_it_is, **self.data
        )

    def end(self):
        if self.hears:
            if self.epoch is not None:  # time was up within it
                self.epoch.call_on_fit_task_end(estimator=self.estimator)
            self.fit.call_on_fit_task_end(
                estimator=self.estimator, reconstruction_attributes=self._as_it_is, **self.data
            )

    def _as_it_is(self):
        network = self.estimator._network.copy()
        return {"_network": network, "coefs_": list(network.coefs), "intercepts_": list(network.intercepts)}
