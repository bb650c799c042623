"""What is quantized, and how: the policy that a person writes, the plan made from it, and its application to modules."""
