package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// The plot's measures, in pixels.
const (
	plotWidth  = 1120
	labelWidth = 330
	valueWidth = 330
	barHeight  = 15
	lineHeight = 21
	titleGap   = 30
	topMargin  = 96
	footer     = 34

	colourBetter = "#2166ac"
	colourWorse  = "#d6604d"
	colourText   = "#1a1a1a"
	colourFaint  = "#767676"
	colourGrid   = "#d9d9d9"
)

// axis maps ratios to pixels, logarithmic: twice as good is as far from the
// middle line as half as good.
type axis struct{ from, to float64 } // exponents of 2

func axisOf(comparisons []comparison) axis {
	a := axis{from: -1, to: 1}
	for _, c := range comparisons {
		if c.Ratio > 0 && !c.Aside {
			a.from = min(a.from, math.Floor(math.Log2(c.Ratio)))
			a.to = max(a.to, math.Ceil(math.Log2(c.Ratio)))
		}
	}
	const furthest = 7
	return axis{max(a.from, -furthest), min(a.to, furthest)}
}

func (a axis) x(ratio float64) float64 {
	exponent := min(max(math.Log2(ratio), a.from), a.to)
	return labelWidth + (exponent-a.from)/(a.to-a.from)*(plotWidth-labelWidth-valueWidth)
}

// draw is the plot of all ratios as SVG: one bar a figure, to the right of the
// middle line where etched is better, whatever way the figure itself goes.
func draw(comparisons []comparison, caption string) string {
	a := axisOf(comparisons)
	var body strings.Builder
	y, last := float64(topMargin), ""
	for _, c := range comparisons {
		if c.Aside {
			continue
		}
		if c.Title != last {
			y += titleGap
			text(&body, 12, y-8, 13, "start", colourText, "bold", c.Title)
			last = c.Title
		}
		bar(&body, a, y, c)
		y += lineHeight
	}
	height := y + footer
	var svg strings.Builder
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%.0f" viewBox="0 0 %d %.0f" font-family="Helvetica, Arial, sans-serif">`+"\n",
		plotWidth, height, plotWidth, height)
	fmt.Fprintf(&svg, `<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n")
	text(&svg, 12, 26, 18, "start", colourText, "bold", "etched beside etcd v3.7.3: how many times better")
	text(&svg, 12, 46, 12, "start", colourFaint, "normal", caption)
	grid(&svg, a, y)
	svg.WriteString(body.String())
	text(&svg, 12, height-12, 11, "start", colourFaint, "normal",
		"Bars are ratios of medians on a logarithmic scale; thin lines span what single repetitions would give. ↑ higher is better, ↓ lower is better.")
	svg.WriteString("</svg>\n")
	return svg.String()
}

func grid(svg *strings.Builder, a axis, bottom float64) {
	for exponent := a.from; exponent <= a.to; exponent++ {
		ratio := math.Exp2(exponent)
		x, colour, width := a.x(ratio), colourGrid, 1.0
		label := fmt.Sprintf("%.0f×", ratio)
		if exponent < 0 {
			label = fmt.Sprintf("1/%.0f", 1/ratio)
		}
		if exponent == 0 {
			colour, width, label = colourText, 1.5, "equal"
		}
		fmt.Fprintf(svg, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%.1f"/>`+"\n",
			x, topMargin-4, x, bottom, colour, width)
		text(svg, x, topMargin-10, 12, "middle", colourText, "normal", label)
	}
	middle := a.x(1)
	text(svg, middle-8, topMargin-28, 12, "end", colourWorse, "bold", "◀ etcd better")
	text(svg, middle+8, topMargin-28, 12, "start", colourBetter, "bold", "etched better ▶")
	text(svg, plotWidth-valueWidth+28, topMargin-28, 12, "start", colourFaint, "normal", "ratio")
	text(svg, plotWidth-valueWidth+88, topMargin-28, 12, "start", colourFaint, "normal", "etcd → etched")
}

func bar(svg *strings.Builder, a axis, y float64, c comparison) {
	direction := "↓"
	if c.Better == higher {
		direction = "↑"
	}
	text(svg, labelWidth-12, y+12, 12, "end", colourText, "normal", c.Name+" "+direction)
	label := fmt.Sprintf("%s → %s %s", short(c.Etcd.Median), short(c.Etched.Median), c.Unit)
	if c.Ratio == 0 {
		text(svg, plotWidth-valueWidth+28, y+12, 12, "start", colourFaint, "normal", "?: "+label)
		return
	}
	colour, from, to := colourBetter, a.x(1), a.x(c.Ratio)
	if c.Ratio < 1 {
		colour, from, to = colourWorse, to, from
	}
	fmt.Fprintf(svg, `<rect x="%.1f" y="%.1f" width="%.1f" height="%d" fill="%s"/>`+"\n", from, y, max(to-from, 1), barHeight, colour)
	if c.Least > 0 && c.Most > c.Least {
		fmt.Fprintf(svg, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="1.5"/>`+"\n",
			a.x(c.Least), y+barHeight/2.0, a.x(c.Most), y+barHeight/2.0, colourText)
	}
	text(svg, plotWidth-valueWidth+28, y+12, 12, "start", colour, "bold", fmt.Sprintf("%.2f×", c.Ratio))
	text(svg, plotWidth-valueWidth+88, y+12, 12, "start", colourText, "normal", label)
}

func text(svg *strings.Builder, x, y float64, size int, anchor, colour, weight, content string) {
	fmt.Fprintf(svg, `<text x="%.1f" y="%.1f" font-size="%d" text-anchor="%s" fill="%s" font-weight="%s">%s</text>`+"\n",
		x, y, size, anchor, colour, weight, html.EscapeString(content))
}
