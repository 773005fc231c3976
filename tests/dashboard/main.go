// Reads a dashboard as Grafana's own types have it: what they do not know, or miss, or have of another type, is told.
package main

import (
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

func main() {
	if err := read(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func read(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	// Only these are looked into: what is of another kind would pass unseen.
	kinds := cog.NewRuntime()
	kinds.RegisterDataqueryVariant(prometheus.VariantConfig())
	kinds.RegisterPanelcfgVariant(stat.VariantConfig())
	kinds.RegisterPanelcfgVariant(timeseries.VariantConfig())
	var found dashboard.Dashboard
	// A list of errors, which may be empty.
	if err := found.UnmarshalJSONStrict(text); err != nil && err.Error() != "" {
		return err
	}
	for _, panel := range found.Panels {
		if panel.Panel == nil {
			continue
		}
		switch panel.Panel.Type {
		case "stat", "timeseries":
		default:
			return fmt.Errorf("nobody looks into panels of the kind %q", panel.Panel.Type)
		}
	}
	return found.Validate()
}
