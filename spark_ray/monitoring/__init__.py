"""What operators see of the house: metrics, and the alerts and dashboards made from them."""
