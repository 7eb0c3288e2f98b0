// Package measure is what the project's benchmarks share: a namespace of their
// own, processes and their CPU time, and medians.
package measure

import "slices"

// Median returns the middle one of what f says of each; 0 if there is none.
func Median[T any](all []T, f func(T) float64) float64 {
	list := make([]float64, 0, len(all))
	for _, x := range all {
		list = append(list, f(x))
	}
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	if n := len(list); n%2 == 0 {
		return (list[n/2-1] + list[n/2]) / 2
	}
	return list[len(list)/2]
}

// Quantile returns the value below which a share q of a sorted list is; 0 if the
// list is empty.
func Quantile[T ~int64 | ~float64](sorted []T, q float64) T {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
