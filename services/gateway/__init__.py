"""The gateway: doors to the loop for those who have no Kafka client."""
