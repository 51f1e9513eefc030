// Package result is what a run of the benchmark has found out: figures with
// their statistics, as JSON and Markdown, and the budget that they are held to.
// It is pure: it measures nothing and knows no runtime.
package result

import (
	"math"
	"slices"
)

// Sample is one measurement. Those of one round were made one after the other,
// in the same minute, and may be compared.
type Sample struct {
	Round int     `json:"round"`
	Value float64 `json:"value"`
}

// Stats are statistics of values.
type Stats struct {
	N      int     `json:"n"`
	Median float64 `json:"median"`
	// P95 is the least value that at least 95 % do not exceed.
	P95 float64 `json:"p95"`
	Min float64 `json:"min"`
	Max float64 `json:"max"`
	// Notch is how far the median may be off by chance: 1.57 times the distance of
	// the quartiles divided by the root of N, as in the notches of box plots.
	Notch float64 `json:"notch"`
}

// Summarize returns the statistics of values, zeros of none.
func Summarize(values []float64) Stats {
	n := len(values)
	if n == 0 {
		return Stats{}
	}
	sorted := slices.Sorted(slices.Values(values))
	spread := quantile(sorted, 0.75) - quantile(sorted, 0.25)
	return Stats{
		N: n, Median: quantile(sorted, 0.5), Min: sorted[0], Max: sorted[n-1],
		P95:   sorted[int(math.Ceil(0.95*float64(n)))-1],
		Notch: 1.57 * spread / math.Sqrt(float64(n)),
	}
}

// quantile interpolates between the two nearest of the sorted values.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// values are those of the samples.
func values(samples []Sample) []float64 {
	list := make([]float64, 0, len(samples))
	for _, s := range samples {
		list = append(list, s.Value)
	}
	return list
}

// ratios divides the samples by those of the same rounds. A round in which either
// is missing, or the second is zero, is left out.
func ratios(samples, by []Sample) []float64 {
	var list []float64
	for _, s := range samples {
		i := slices.IndexFunc(by, func(b Sample) bool { return b.Round == s.Round && b.Value != 0 })
		if i >= 0 {
			list = append(list, s.Value/by[i].Value)
		}
	}
	return list
}
