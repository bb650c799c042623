"""The in-flight batch manager: admission, fairness, budgets and the step loop, for every modality alike."""
