"""``sixfold top``: what servers and gateways are doing now, from what they tell everyone."""
