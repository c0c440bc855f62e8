// Command reader reads one secret on and on, in the way that is its argument: how many reads a second, and how long one
// takes. A line with seconds comes in, a line with reads a second and the median in microseconds goes out.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	keyhatch "github.com/keyhatch/keyhatch/client-shims/go"
)

// burst is how many reads come before the clock is looked at.
const burst = 16

func main() {
	way, name := os.Args[1], os.Args[2]
	client := keyhatch.New()
	if way == "go-cached" {
		client = keyhatch.New(keyhatch.WithCache())
	}
	read := func() {
		secret, err := client.Get(context.Background(), name)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		secret.Reveal()
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		seconds, err := strconv.ParseFloat(lines.Text(), 64)
		if err != nil {
			os.Exit(2)
		}
		half := time.Duration(seconds / 2 * float64(time.Second))
		fmt.Println(rate(read, half), median(read, half))
	}
}

func rate(read func(), during time.Duration) float64 {
	count, begin := 0, time.Now()
	for time.Since(begin) < during {
		for range [burst]struct{}{} {
			read()
		}
		count += burst
	}
	return float64(count) / time.Since(begin).Seconds()
}

func median(read func(), during time.Duration) float64 {
	var times []time.Duration
	end := time.Now().Add(during)
	for begin := time.Now(); begin.Before(end); begin = time.Now() {
		read()
		times = append(times, time.Since(begin))
	}
	slices.Sort(times)
	return float64(times[len(times)/2].Nanoseconds()) / 1000
}
